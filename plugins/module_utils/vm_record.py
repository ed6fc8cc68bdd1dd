# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was seen at the last look at a domain, so that a look at an unchanged one costs no question to libvirt.

libvirt writes a file whenever a definition changes and another whenever a running domain does. While both are the same
files as at the last look that found nothing to do, while QEMU is the same process and the options are the same, there
is again nothing to do. The files' content is libvirt's own and never read; anything unexpected means: look properly.
A record is made by a run that changed nothing, with the stamps from before its look. It is gone after a boot.
"""

from __future__ import annotations

import hashlib
import json
import os

from ansible_collections.clachan.platform.plugins.module_utils import hypervisor
from ansible_collections.clachan.platform.plugins.module_utils.layout import write_file

DEFINITIONS = "/etc/libvirt/qemu"
RUNNING = "/run/libvirt/qemu"


def seen(params):
    """What a domain's options and libvirt's files are now; None where libvirt is not this machine's usual one."""
    definition = _stamp(os.path.join(DEFINITIONS, "%s.xml" % params["name"]))
    if params["uri"] != hypervisor.URI or definition is None or params["state"] == "absent":
        return None
    return {
        "options": hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest(),
        "definition": definition,
        "running": _stamp(os.path.join(RUNNING, "%s.xml" % params["name"])),
    }


def remember(uuid, what_was_seen, result):
    """Keep the result of a look that found nothing to do."""
    if what_was_seen is not None:
        document = {"seen": what_was_seen, "result": result}
        write_file(hypervisor.state_path("%s.json" % uuid), json.dumps(document).encode(), 0o600)


def unchanged(params):
    """The result of the last look when nothing can have changed since; None when it takes another look."""
    now = seen(params) if params["uuid"] else None
    if now is None:
        return None
    try:
        with open(os.path.join(hypervisor.STATE, "%s.json" % params["uuid"]), encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    if document.get("seen") != now or (now["running"] and not _runs(params)):
        return None
    return document["result"]


def forget(uuid):
    try:
        os.unlink(os.path.join(hypervisor.STATE, "%s.json" % uuid))
    except FileNotFoundError:
        pass


def _stamp(path):
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _runs(params):
    """Whether the process that libvirt started for the domain is there: libvirtd may have been dead when it ended."""
    try:
        with open(os.path.join(RUNNING, "%s.pid" % params["name"]), encoding="ascii") as file:
            pid = int(file.read())
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return params["uuid"].encode() in file.read().split(b"\0")
    except (OSError, ValueError):
        return False
