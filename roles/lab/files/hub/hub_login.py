# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Login by the platform's users: name and a token of theirs, which the controller is asked about once.

The hub has no right in the controller and keeps no token: with the given one it asks whose it is, and forgets it. A
token that lives a minute is enough, `clachan lab open` makes such a one.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import hub_places
from jupyterhub.auth import Authenticator
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.web import HTTPError

SLOT = Path(os.environ["CLACHAN_SLOT"])
TOKEN = re.compile(r"[!-~]{8,256}")
OF_ALL_TENANTS = {"admin", "operator"}


class PlatformAuthenticator(Authenticator):  # type: ignore[misc]
    any_allow_config = True

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        name, given = data.get("username", ""), data.get("password", "").strip()
        if name not in hub_places.users() or not TOKEN.fullmatch(given):
            return None
        return name if self._fits(await self._whose(given), name) else None

    async def _whose(self, given: str) -> dict[str, Any]:
        about = json.loads((SLOT / "etc/hub.json").read_text())["controller"]
        request = HTTPRequest(
            about["url"].rstrip("/") + "/api/v1/principal",
            headers={"Authorization": "Bearer " + given},
            ca_certs=about["ca"] or None,
            request_timeout=20,
        )
        try:
            answer = await AsyncHTTPClient().fetch(request, raise_error=False)
        except OSError as error:
            self.log.error("controller %s: %s, expected an answer", about["url"], error)
            raise HTTPError(503, "The controller does not answer: try again in a minute") from None
        if answer.code == 401:
            return {}
        if answer.code != 200:
            self.log.error("controller %s: status %s, expected 200", about["url"], answer.code)
            raise HTTPError(503, "The controller does not answer: try again in a minute")
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def _fits(self, principal: dict[str, Any], name: str) -> bool:
        tenant = json.loads((SLOT / "etc/hub.json").read_text())["tenant"]
        if principal.get("kind") != "user" or principal.get("name") != name:
            return False
        return principal.get("role") in OF_ALL_TENANTS or tenant in principal.get("tenants", [])

    def check_allowed(self, username: str, authentication: Any = None) -> bool:
        return username in hub_places.users()

    async def refresh_user(self, user: Any, handler: Any = None) -> bool:
        """Who was taken out of `lab_users` is logged out."""
        return user.name in hub_places.users()
