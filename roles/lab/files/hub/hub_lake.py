# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens of the lake that end soon, made with one that does not, which only the hub's unix user can read.

hub_lake.py    keeps each server that runs in a token: a new one when half of its life is over
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import hub_places
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

SLOT = Path(os.environ["CLACHAN_SLOT"])
PAUSE_SECONDS = 15
log = logging.getLogger(__name__)


def settings() -> dict[str, Any]:
    """`url` is empty without a lake."""
    found: dict[str, Any] = json.loads((SLOT / "etc/hub.json").read_text())["lake"]
    return found


async def token(user: str) -> str:
    """A new one; raises RuntimeError."""
    about = settings()
    asked = {"scopes": about["scopes"], "seconds": about["seconds"], "note": f"{about['note']}, {user}"}
    return str((await _lake("POST", "/tokens", json.dumps(asked)))["token"])


async def _lake(method: str, path: str, body: str | None = None) -> Any:
    about = settings()
    request = HTTPRequest(
        about["url"] + path,
        method=method,
        headers={"Authorization": "Bearer " + (SLOT / "etc/lake-token").read_text().strip()},
        body=body,
        ca_certs=about["ca"] or None,
        request_timeout=20,
    )
    try:
        answer = await AsyncHTTPClient().fetch(request, raise_error=False)
    except OSError as error:
        raise RuntimeError(f"lake {about['url']}: {error}, expected an answer") from None
    if answer.code == 403:
        raise RuntimeError(f"lake {about['url']}: may not make tokens, expected lab_lake_token with the scope admin")
    if answer.code not in {200, 201}:
        raise RuntimeError(f"lake {about['url']}: status {answer.code}, expected a token")
    return json.loads(answer.body)


async def give(user: str, place: dict[str, Any]) -> None:
    """Bring a user's place a new token. A lake that is away keeps nobody from starting a server."""
    if not settings()["url"]:
        return
    try:
        await hub_places.ask(place, "PUT", "/token", await token(user))
    except (RuntimeError, OSError) as error:
        log.warning("token of %s: %s", user, error)


async def renew() -> None:
    for user, place in hub_places.users().items():
        if "url" not in place:
            continue
        try:
            found = await hub_places.ask(place, "GET", "/")
        except (RuntimeError, OSError) as error:
            log.warning("place of %s: %s", user, error)
            continue
        if found["runs"] and (found["token_age"] is None or found["token_age"] > settings()["seconds"] / 2):
            await give(user, place)


async def main() -> None:
    while True:
        if settings()["url"]:
            await renew()
        await asyncio.sleep(min(PAUSE_SECONDS, settings()["seconds"] / 8))


async def look() -> None:
    """The promise: the lake makes tokens for this one, and opens with what it made."""
    found = await _lake("GET", "/arrays?limit=1")
    await _lake("GET", "/tokens?limit=1")
    sys.stdout.write(f"the lake answers, {len(found.get('items', []))} of its arrays was read\n")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        asyncio.run(look() if sys.argv[1:] == ["look"] else main())
    except RuntimeError as problem:
        sys.exit(str(problem))
