# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of a slot: services, promises, requests, published values, checked as the agent will check them.

The agent refuses a wrong document after the run; here its author learns it from the task that wrote it. The tables
below mirror the controller's contract for the slot; a test holds the two together.
"""

from __future__ import annotations

import json
import re

from ansible_collections.clachan.platform.plugins.module_utils.names import is_fqcn, is_name, is_path
from ansible_collections.clachan.platform.plugins.module_utils.slot_files import SlotError

DOCUMENT_BYTES = 64 * 1024
DOCUMENTS = 256
PUBLISHED = 64


def _whole(least, most):
    def check(value):
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return check, "a whole number from %d to %d" % (least, most)


def _inside(value):
    return (
        isinstance(value, str)
        and len(value) <= 512
        and value.isprintable()
        and all(part not in ("", ".", "..") for part in value.split("/"))
    )


def _argument(value):
    return isinstance(value, str) and len(value) <= 8192 and "\0" not in value


def _environment(value):
    names = isinstance(value, dict) and all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in value)
    return names and all(map(_argument, value.values()))


TEXT = (lambda value: isinstance(value, str), "a text")
TITLE = (lambda value: isinstance(value, str) and len(value) <= 4000, "a text of at most 4000 characters")
NAME = (is_name, "a name ([a-z][a-z0-9_]{0,30})")
INSIDE = (_inside, "a path below the slot: relative, without '.', '..' or empty parts")
SECONDS = (
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 3600,
    "seconds, more than 0 and at most 3600",
)
COMMAND = (
    lambda value: isinstance(value, list) and 1 <= len(value) <= 256 and all(map(_argument, value)),
    "a list of 1 to 256 texts",
)
URL = (lambda value: isinstance(value, str) and re.match(r"https?://", value) is not None, "a URL (http or https)")

SERVICE = {
    "command": COMMAND,
    "environment": (_environment, "texts by variable name"),
    "directory": INSIDE,
    "restart_on": (
        lambda value: isinstance(value, list) and all(map(_inside, value)),
        "a list of paths below the slot",
    ),
    "stop_seconds": _whole(1, 600),
    "open_files": (lambda value: value is None or _whole(64, 1048576)[0](value), _whole(64, 1048576)[1]),
}
CHECK = {"kind": TEXT, "title": TEXT, "every_seconds": SECONDS, "timeout_seconds": SECONDS}
PROMISES = {
    "process": ({"service": NAME}, ("service",)),
    "tcp": ({"address": TEXT, "port": _whole(1, 65535)}, ("address", "port")),
    "http": (
        {
            "url": URL,
            "status": _whole(100, 599),
            "contains": (lambda value: value is None or isinstance(value, str), "a text"),
        },
        ("url",),
    ),
    "command": ({"command": COMMAND}, ("command",)),
    "file_age": ({"path": INSIDE, "max_seconds": SECONDS}, ("path", "max_seconds")),
    "disk_space": ({"path": INSIDE, "min_free_mib": _whole(0, 1 << 62)}, ("min_free_mib",)),
    "children": ({}, ()),
}
PLACEMENT = {
    "labels": (
        lambda value: (
            isinstance(value, dict) and all(is_name(key) and isinstance(text, str) for key, text in value.items())
        ),
        "texts by name",
    ),
    "node": (lambda value: value is None or is_name(value), NAME[1]),
    "spread": (lambda value: isinstance(value, bool), "true or false"),
    "inside": (lambda value: value is None or is_path(value), "an instance's path"),
}


def _placement(value):
    return isinstance(value, dict) and all(key in PLACEMENT and PLACEMENT[key][0](part) for key, part in value.items())


REQUEST = {
    "software": (is_fqcn, "a software (NAMESPACE.COLLECTION.ROLE)"),
    "digest": (
        lambda value: value is None or (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)),
        "64 hex digits",
    ),
    "type": TEXT,
    "parameters": (lambda value: isinstance(value, dict), "values by option's name"),
    "placement": (_placement, "labels, node, spread, inside"),
    "state": (lambda value: value in ("started", "stopped", "absent"), "started, stopped or absent"),
    "title": TITLE,
}


def check_service(name, document):
    _check_fields("service %s" % name, document, SERVICE, ("command",))


def check_promise(name, document):
    what = "promise %s" % name
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in PROMISES:
        raise SlotError("%s: kind %r, expected one of %s" % (what, kind, ", ".join(sorted(PROMISES))))
    fields, required = PROMISES[kind]
    _check_fields(what, document, dict(CHECK, **fields), required)


def check_request(name, document):
    _check_fields("request %s" % name, document, REQUEST, ("software",))


def check_published(values):
    if not isinstance(values, dict) or len(values) > PUBLISHED:
        raise SlotError("publish: expected at most %d values by name" % PUBLISHED)
    for key, value in values.items():
        if not is_name(key):
            raise SlotError("publish: key %r, expected %s" % (key, NAME[1]))
        if not isinstance(value, (str, int, float, bool)):
            raise SlotError("publish %s: %s, expected a text, a number or true/false" % (key, _kind(value)))


def _check_fields(what, document, fields, required):
    if not isinstance(document, dict):
        raise SlotError("%s: %s, expected a mapping" % (what, _kind(document)))
    for key, value in document.items():
        if key not in fields:
            raise SlotError("%s: unknown %r, expected one of %s" % (what, key, ", ".join(sorted(fields))))
        fits, expected = fields[key]
        if not fits(value):
            # the value may be a secret: say only what kind it is
            raise SlotError("%s: %s is %s, expected %s" % (what, key, _kind(value), expected))
    for key in required:
        if key not in document:
            raise SlotError("%s: no %s, expected %s" % (what, key, fields[key][1]))


def _kind(value):
    """What a wrong value is, without showing a text that may be a secret."""
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return "a text of %d characters" % len(value)
    return "a list of %d" % len(value) if isinstance(value, list) else "a mapping"


def documents(what, given, check):
    """The bytes of each document by name; `check(name, document)` refuses a wrong one."""
    if not isinstance(given, dict) or len(given) > DOCUMENTS:
        raise SlotError("%ss: expected at most %d documents by name" % (what, DOCUMENTS))
    found = {}
    for name, document in given.items():
        if not is_name(name):
            raise SlotError("%s %r: expected %s" % (what, name, NAME[1]))
        check(name, document)
        found[name] = encode("%s %s" % (what, name), document)
    return found


def encode(what, document):
    """A document as it stands in its file: JSON, sorted, so that equal documents are equal bytes."""
    try:
        data = (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except ValueError as problem:
        raise SlotError("%s: %s, expected what JSON can say" % (what, type(problem).__name__)) from None
    if len(data) > DOCUMENT_BYTES:
        raise SlotError("%s: %d bytes, expected at most %d" % (what, len(data), DOCUMENT_BYTES))
    return data


def numbers_as_text(document):
    """A service or command promise as its author may write it: numbers in `command` and `environment` become text."""
    if not isinstance(document, dict):
        return document
    document = dict(document)
    if isinstance(document.get("command"), list):
        document["command"] = [_as_text(part) for part in document["command"]]
    if isinstance(document.get("environment"), dict):
        document["environment"] = {key: _as_text(part) for key, part in document["environment"].items()}
    return document


def _as_text(value):
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
