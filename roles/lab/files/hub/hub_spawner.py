# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of users, which run in the users' places and not as children of the hub: they go on when it ends."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hub_lake
import hub_places
from jupyterhub.spawner import Spawner

SLOT = Path(os.environ["CLACHAN_SLOT"])


class PlaceSpawner(Spawner):  # type: ignore[misc]
    def place(self) -> dict[str, Any]:
        found = hub_places.users().get(self.user.name)
        if not found or "url" not in found:
            raise RuntimeError(f"place of {self.user.name}: not made yet, expected it: try again in a minute")
        return found

    async def start(self) -> tuple[str, int]:
        place = self.place()
        at = urlsplit(place["url"])
        self.ip, self.port = str(at.hostname), int(at.port or 0) + 1
        await hub_lake.give(self.user.name, place)
        await hub_places.ask(place, "POST", "/start", json.dumps({"environment": self.get_env()}))
        return self.ip, self.port

    async def poll(self) -> int | None:
        try:
            return None if (await hub_places.ask(self.place(), "GET", "/"))["runs"] else 0
        except OSError:
            # its launcher is being started anew, while the server goes on
            self.log.warning("launcher of %s: does not answer", self.user.name)
            return None
        except RuntimeError:
            return 0

    async def stop(self, now: bool = False) -> None:
        try:
            await hub_places.ask(self.place(), "POST", "/stop", json.dumps({"now": now}))
        except RuntimeError as error:
            self.log.warning("server of %s: %s", self.user.name, error)

    async def get_options_form(self) -> str:
        """What is shown before the server is started. Nobody but the platform says what stands in it."""
        place = hub_places.users().get(self.user.name, {})
        lines = [f"<p>Your limits: {escape(str(place.get('limits', 'not known yet')))}.</p>"]
        if place.get("warning"):
            lines.append(f"<p>{escape(str(place['warning']))}.</p>")
        idle = json.loads((SLOT / "etc/hub.json").read_text())["idle_seconds"]
        lines.append(f"<p>A server that nobody uses for {idle // 60} minutes is stopped; files stay.</p>")
        return "\n".join(lines)
