# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`try_kernel.py NAME`: starts a kernel, lets it compute, ends it. Run in the sandbox by the server's Python."""

from __future__ import annotations

import sys
import time

from jupyter_client.manager import KernelManager

SECONDS = 45


def main(name: str) -> None:
    began = time.monotonic()
    manager = KernelManager(kernel_name=name, transport="ipc")
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=SECONDS)
        said: list[str] = []
        client.execute_interactive("print(6 * 7)", timeout=SECONDS, output_hook=lambda each: said.append(text(each)))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    found = "".join(said).strip()
    if found != "42":
        sys.exit(f"kernel {name}: said {found[:80]!r}, expected 42")
    sys.stdout.write(f"kernel {name} computed after {time.monotonic() - began:.1f} s\n")


def text(message: dict[str, object]) -> str:
    content = message["content"]
    return str(content.get("text", "")) if isinstance(content, dict) else ""


if __name__ == "__main__":
    main(sys.argv[1])
