# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A slot task as a whole: a plan (what shall be in the slot) made true, below `etc/` here, below `var/` by a child.

A plan is a dict, and JSON when it travels to another machine:
`directory`, `user`: the slot's; `files`: {path: {"content": base64, "mode": int}}; `directories`: [path];
`complete`: directories that hold nothing but these files; `remove`: paths where nothing shall be;
`difference`: whether to say how texts differ; `secrets`: texts that never stand in a difference.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import time

from ansible_collections.clachan.platform.plugins.module_utils.redaction import Redaction
from ansible_collections.clachan.platform.plugins.module_utils.slot_files import (
    BYTES,
    Change,
    File,
    Owner,
    SlotError,
    Tree,
    check_path,
    group_name,
    open_directory,
    slot_owner,
    user_name,
)

CHILD_SECONDS = 120


def apply_plan(plan, check):
    """Make the plan true (with `check`: only say what would change) and return the task's result, differences redacted.

    Raises SlotError; then what was already written stays, and the next run completes it.
    """
    owner = slot_owner(plan["user"])
    slot = _open_slot(plan["directory"])
    try:
        changes = []
        for top in ("etc", "var"):
            part = _part(plan, top)
            if any(part.values()):
                changes += _work(slot, plan, top, part, owner, check)
    finally:
        os.close(slot)
    result = {"changed": bool(changes), "paths": [change.path for change in changes]}
    if plan["difference"]:
        redaction = Redaction(plan["secrets"])
        result["diff"] = [_difference(change, redaction) for change in changes]
    return result


def _open_slot(directory):
    try:
        slot = open_directory(directory)
    except OSError as problem:
        raise SlotError(
            "slot's directory %s: %s, expected one that the node's agent made" % (directory, problem.strerror)
        ) from None
    status = os.fstat(slot)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        os.close(slot)
        raise SlotError(
            "slot's directory %s: owner %s, mode %04o, expected owner %s and nobody else may write"
            % (directory, user_name(status.st_uid), status.st_mode & 0o7777, user_name(os.geteuid()))
        )
    return slot


def _part(plan, top):
    """What of the plan is below `top`."""
    files = [
        File(path, base64.b64decode(file["content"]), file["mode"])
        for path, file in sorted(plan["files"].items())
        if path.startswith(top + "/")
    ]
    below = {
        key: [path for path in plan[key] if path.startswith(top + "/")] for key in ("directories", "complete", "remove")
    }
    for path in [file.path for file in files] + below["directories"]:
        check_path(path)
    return dict(below, files=files)


def _work(slot, plan, top, part, owner, check):
    if top == "var" and os.geteuid() == 0 and owner.uid != 0:
        return _in_child(slot, plan["user"], owner, lambda: _work_here(slot, top, part, owner, check))
    # in the unprivileged mode both are the one user's
    files_owner = Owner(os.geteuid(), owner.gid) if top == "etc" else owner
    return _work_here(slot, top, part, files_owner, check)


def _work_here(slot, top, part, owner, check):
    try:
        top_fd = open_directory(top, slot)
    except OSError as problem:
        raise SlotError(
            "slot's directory %s: %s, expected one that the node's agent made" % (top, problem.strerror)
        ) from None
    try:
        status = os.fstat(top_fd)
        if status.st_uid != os.geteuid():
            raise SlotError(
                "slot's directory %s: owner %s, expected %s" % (top, user_name(status.st_uid), user_name(os.geteuid()))
            )
        tree = Tree(slot, top_fd, owner)
        changes = tree.look(**part)
        if not check:
            tree.apply(changes, part["files"])
        return changes
    finally:
        os.close(top_fd)


def _in_child(slot, user, owner, work):
    """The changes that `work` found (and made), run in a child process that is the slot's user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _child(writer, user, owner, work)
    os.close(writer)
    try:
        raw = _read_from(reader)
    finally:
        os.close(reader)
        # the slot's user may have stopped or killed it: never wait for its good will
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    answer = json.loads(raw) if raw else {"error": "process for var/: ended without an answer"}
    if "error" in answer:
        raise SlotError(answer["error"])
    return [Change(path, _decode(before), _decode(after), rights) for path, before, after, rights in answer["changes"]]


def _child(writer, user, owner, work):
    try:
        os.initgroups(user, owner.gid)
        os.setresgid(owner.gid, owner.gid, owner.gid)
        os.setresuid(owner.uid, owner.uid, owner.uid)
        os.umask(0o077)
        changes = work()
        answer = {"changes": [(c.path, _encode(c.before), _encode(c.after), c.rights) for c in changes]}
    except SlotError as problem:
        answer = {"error": str(problem)}
    except BaseException as problem:  # nothing may return into the parent's code
        answer = {"error": "process for var/: %r" % problem}
    try:
        with os.fdopen(writer, "wb") as out:
            out.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _read_from(reader):
    deadline, parts, size = time.monotonic() + CHILD_SECONDS, [], 0
    while size <= 16 * BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise SlotError("process for var/: no answer in %d s" % CHILD_SECONDS)
        part = os.read(reader, 1 << 20)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _encode(content):
    return None if content is None else base64.b64encode(content).decode()


def _decode(text):
    return None if text is None else base64.b64decode(text)


def _difference(change, redaction):
    before, after = redaction.pair(_text(change.before), _text(change.after))
    difference = {"before_header": change.path, "after_header": change.path, "before": before, "after": after}
    if change.rights:
        difference["before_header"] += " (%s)" % _rights(change.rights[0])
        difference["after_header"] += " (%s)" % _rights(change.rights[1])
    return difference


def _rights(rights):
    mode, uid, gid = rights
    return "%04o %s:%s" % (mode, user_name(uid), group_name(gid))


def _text(content):
    if content is None:
        return ""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "<binary, %d bytes>\n" % len(content)
