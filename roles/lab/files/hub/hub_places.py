# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The users' places: each is an instance of its own, whose launcher starts and stops the user's server.

`etc/users.json` says which there are, and is read each time: who comes or goes needs no restart of the hub.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

SLOT = Path(os.environ["CLACHAN_SLOT"])
USERS = SLOT / "etc" / "users.json"
SECONDS = 30


def users() -> dict[str, dict[str, Any]]:
    """Name -> what the place publishes; empty until it does."""
    found: dict[str, dict[str, Any]] = json.loads(USERS.read_text())
    return found


async def ask(place: dict[str, Any], method: str, path: str, body: str | None = None) -> dict[str, Any]:
    """One question to a launcher; raises OSError when it does not answer, RuntimeError with what it refuses."""
    request = HTTPRequest(
        place["url"] + path,
        method=method,
        headers={"Authorization": "Bearer " + place["secret"]},
        body=body,
        request_timeout=SECONDS,
    )
    try:
        answer = await AsyncHTTPClient().fetch(request, raise_error=False)
    except HTTPClientError as error:
        raise ConnectionError(f"launcher {place['url']}: {error}, expected an answer") from None
    if answer.code == 599:
        raise ConnectionError(f"launcher {place['url']}: no answer, expected one")
    found: dict[str, Any] = json.loads(answer.body)
    if answer.code != 200:
        raise RuntimeError(found.get("error", f"launcher: status {answer.code}, expected 200"))
    return found
