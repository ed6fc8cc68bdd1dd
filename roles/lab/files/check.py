# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The promises of a lab that need a program.

check.py kernel URL NAME    starts a kernel through the server, lets it compute, ends it; run by the server's Python
check.py lake NAME          opens the lake as a notebook of that kernel does; run by the kernel's Python

The last line that is printed says what was found. CLACHAN_SLOT is the slot.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

SLOT = Path(os.environ["CLACHAN_SLOT"])
LEFT = SLOT / "var" / "run" / "check.kernel"
"""The kernel of a check that was killed before it had ended it."""
SECONDS = 45


def ask(url: str, method: str = "GET", body: Any = None) -> Any:
    request = urllib.request.Request(  # noqa: S310 - the lab's own address
        url,
        method=method,
        headers={"Authorization": "token " + (SLOT / "etc" / "token").read_text(), "Content-Type": "application/json"},
        data=None if body is None else json.dumps(body).encode(),
    )
    secured = urllib.request.HTTPSHandler(context=trusting())
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), secured)
    with direct.open(request, timeout=SECONDS) as answer:
        return json.loads(answer.read() or b"null")


def trusting() -> ssl.SSLContext:
    """The server's own certificate, where it has one."""
    own = SLOT / "etc" / "certificate.pem"
    return ssl.create_default_context(cafile=str(own) if own.stat().st_size else None)


def kernel(url: str, name: str) -> str:
    began = time.monotonic()
    end_the_one_left(url)
    made = ask(url + "/api/kernels", "POST", {"name": name})["id"]
    try:
        LEFT.parent.mkdir(parents=True, exist_ok=True)
        LEFT.write_text(made)
        said = computed(url, made)
    finally:
        end_the_one_left(url)
    if said != "42":
        sys.exit(f"kernel {name}: said {said[:80]!r}, expected 42")
    return f"kernel {name} computed after {time.monotonic() - began:.1f} s"


def end_the_one_left(url: str) -> None:
    if not LEFT.exists():
        return
    try:
        ask(url + "/api/kernels/" + LEFT.read_text(), "DELETE")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
    LEFT.unlink()


def computed(url: str, made: str) -> str:
    """What the kernel prints of 6 * 7."""
    import websocket  # of the server's environment

    session = uuid.uuid4().hex
    where = "ws" + url.removeprefix("http") + "/api/kernels/" + made + "/channels?session_id=" + session
    header = {"Authorization": "token " + (SLOT / "etc" / "token").read_text()}
    secured = {"context": trusting()}
    line = websocket.create_connection(where, header=header, timeout=SECONDS, http_no_proxy=["*"], sslopt=secured)
    try:
        line.send(json.dumps(request(session)))
        printed, limit = "", time.monotonic() + SECONDS
        while time.monotonic() < limit:
            message = json.loads(line.recv())
            if message["parent_header"].get("session") != session:
                continue
            if message["msg_type"] == "stream":
                printed += message["content"]["text"]
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle" and printed:
                return printed.strip()
    finally:
        line.close()
    return printed


def request(session: str) -> dict[str, Any]:
    content = {"code": "print(6 * 7)", "silent": False, "store_history": False, "allow_stdin": False}
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": session, "version": "5.3"}
    return {
        "header": {**header, "username": "", "date": ""},
        "parent_header": {},
        "metadata": {},
        "content": content,
        "channel": "shell",
        "buffers": [],
    }


def lake(name: str) -> str:
    found = json.loads((SLOT / "etc/data/kernels" / name / "kernel.json").read_text())
    os.environ.update(found["env"])
    from clachan_lake import open_lake
    from clachan_lake.errors import LakeError

    try:
        with open_lake() as opened:
            return f"{len(opened.arrays)} arrays, {len(opened.streams)} streams"
    except (LakeError, OSError) as error:
        sys.exit(str(error))


def main(verb: str, *arguments: str) -> None:
    sys.stdout.write({"kernel": kernel, "lake": lake}[verb](*arguments) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
