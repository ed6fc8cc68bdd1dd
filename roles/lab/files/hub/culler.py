# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stops servers that nobody uses. Its token is in a file, so it stands in no list of processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SLOT = Path(os.environ["CLACHAN_SLOT"])


def main() -> None:
    about = json.loads((SLOT / "etc/hub.json").read_text())
    os.environ["JUPYTERHUB_API_TOKEN"] = (SLOT / "etc/culler-token").read_text().strip()
    os.environ["JUPYTERHUB_API_URL"] = f"http://{about['address']}:{about['port'] + 1}/hub/api"
    idle = about["idle_seconds"]
    sys.argv = [sys.argv[0], f"--timeout={idle}", f"--cull-every={max(5, min(300, idle // 4))}"]
    from jupyterhub_idle_culler import main as cull

    cull()


if __name__ == "__main__":
    main()
