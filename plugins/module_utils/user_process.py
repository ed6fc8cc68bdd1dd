# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in a directory that another unix user can write, done by a child process that has become that user.

So a link that the user put there leads only to what that user may touch anyway.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import time


class UserProcessError(Exception):
    """What the work said when it failed."""


def as_user(uid, work, seconds=None):
    """The value of `work()` (what JSON can say), called as that user; here when this process is that user already.

    Raises UserProcessError with the text of any error in it, and when a child gave no answer for so many seconds: that
    user may have stopped it.
    """
    if os.geteuid() == uid:
        try:
            return work()
        except OSError as problem:
            raise UserProcessError(str(problem)) from None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, uid, work)
    os.close(writer)
    try:
        raw = _heard(reader, uid, seconds)
    finally:
        os.close(reader)
        # that user may have stopped it: never wait for its good will
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    answer = json.loads(raw) if raw else {"error": "the process that became user %d ended without an answer" % uid}
    if "error" in answer:
        raise UserProcessError(answer["error"])
    return answer["value"]


def _heard(reader, uid, seconds):
    deadline, parts = time.monotonic() + (seconds or 0), []
    while True:
        left = max(0, deadline - time.monotonic()) if seconds else None
        if not select.select([reader], [], [], left)[0]:
            raise UserProcessError("the process that became user %d: no answer in %d s" % (uid, seconds))
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _answer(writer, uid, work):
    try:
        entry = pwd.getpwuid(uid)
        os.setsid()
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(uid, uid, uid)
        os.umask(0o077)
        answer = {"value": work()}
    except BaseException as problem:  # nothing may return into the parent's code
        answer = {"error": str(problem) or repr(problem)}
    try:
        with os.fdopen(writer, "wb") as out:
            out.write(json.dumps(answer).encode())
    finally:
        os._exit(0)
