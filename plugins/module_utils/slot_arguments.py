# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the arguments of a slot task to its plan (see slot_plan). Templates are rendered, sources read already."""

from __future__ import annotations

import base64
import re

from ansible_collections.clachan.platform.plugins.module_utils import slot_documents as docs
from ansible_collections.clachan.platform.plugins.module_utils.slot_files import SlotError, check_path

DOCUMENTS = {
    "services": ("service", docs.check_service),
    "promises": ("promise", docs.check_promise),
    "requests": ("request", docs.check_request),
}
PUBLISHED = "etc/published.json"
DEFAULT_MODE = 0o640


def make_plan(arguments, directory, user):
    """The plan of a task, without differences. `arguments["files"]` is {path: {"content": bytes, "mode": text}}."""
    plan = {"directory": directory, "user": user, "files": {}, "directories": [], "complete": [], "remove": []}
    plan.update(difference=False, secrets=[])
    for path, file in arguments["files"].items():
        check_path(path)
        _refuse_reserved(path)
        _add(plan, path, file["content"], _mode(path, file.get("mode")))
    for path in arguments["directories"]:
        check_path(path, "directory")
        plan["directories"].append(path)
    # whoever names one kind of document declares them all: what a role no longer names is gone
    if any(arguments.get(kind) is not None for kind in (*DOCUMENTS, "publish")):
        _add_documents(plan, arguments)
    return plan


def _add(plan, path, content, mode=DEFAULT_MODE):
    plan["files"][path] = {"content": base64.b64encode(content).decode(), "mode": mode}


def _add_documents(plan, arguments):
    for kind, (what, check) in DOCUMENTS.items():
        given = arguments.get(kind) or {}
        if kind != "requests" and isinstance(given, dict):
            given = {name: docs.numbers_as_text(document) for name, document in given.items()}
        directory = "etc/%s.d" % kind
        plan["complete"].append(directory)
        for name, data in docs.documents(what, given, check).items():
            _add(plan, "%s/%s.json" % (directory, name), data)
    values = arguments.get("publish") or {}
    docs.check_published(values)
    if values:
        _add(plan, PUBLISHED, docs.encode("publish", values))
    else:
        plan["remove"].append(PUBLISHED)


def _refuse_reserved(path):
    kind = re.match(r"etc/(services|promises|requests)\.d(/|\Z)", path)
    if kind or path == PUBLISHED:
        raise SlotError("file %s: expected the option %s for it" % (path, kind.group(1) if kind else "publish"))


def _mode(path, mode):
    if mode is None:
        return DEFAULT_MODE
    if not isinstance(mode, str) or not re.fullmatch(r"0?[0-7]{3}", mode):
        raise SlotError('file %s: mode %r, expected octal digits in quotes, as "0640"' % (path, mode))
    return int(mode, 8)
