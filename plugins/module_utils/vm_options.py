# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of clachan.platform.vm, which its action reads as well as the module."""

from __future__ import annotations

from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import URI

CPU = {
    "count": {"type": "int", "default": 1},
    "maximum": {"type": "int"},
    "model": {"type": "str", "default": "auto"},
    "pinning": {"type": "list", "elements": "str"},
}
MEMORY = {
    "mib": {"type": "int", "required": True},
    "maximum_mib": {"type": "int"},
    "balloon": {"type": "bool", "default": True},
    "hugepages": {"type": "bool", "default": False},
}
DISK = {
    "path": {"type": "str", "required": True},
    "format": {"type": "str", "choices": ["raw", "qcow2"], "default": "qcow2"},
    "backing": {"type": "str"},
    "backing_format": {"type": "str", "choices": ["raw", "qcow2"], "default": "qcow2"},
    "target": {"type": "str"},
    "cache": {
        "type": "str",
        "choices": ["auto", "none", "writeback", "writethrough", "directsync", "unsafe"],
        "default": "auto",
    },
    "io": {"type": "str", "choices": ["auto", "native", "threads", "io_uring"], "default": "auto"},
    "discard": {"type": "bool", "default": True},
    "readonly": {"type": "bool", "default": False},
    "serial": {"type": "str"},
}
INTERFACE = {
    "kind": {"type": "str", "choices": ["tap", "bridge", "macvtap"], "default": "tap"},
    "device": {"type": "str", "required": True},
    "mac": {"type": "str", "required": True},
    "mode": {"type": "str", "choices": ["bridge", "private", "vepa"]},
}
OPTIONS = {
    "name": {"type": "str", "required": True},
    "uuid": {"type": "str"},
    "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
    "user": {"type": "str"},
    "accelerator": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
    "kvm_probe_kernel": {"type": "str"},
    "cpu": {"type": "dict", "options": CPU},
    "memory": {"type": "dict", "options": MEMORY},
    "disks": {"type": "list", "elements": "dict", "options": DISK, "default": []},
    "seed": {"type": "str"},
    "interfaces": {"type": "list", "elements": "dict", "options": INTERFACE, "default": []},
    "console_socket": {"type": "str"},
    "console_log": {"type": "str"},
    "console_log_mib": {"type": "int", "default": 4},
    "vnc": {"type": "str"},
    "agent": {"type": "bool", "default": True},
    "rng": {"type": "bool", "default": True},
    "restart": {"type": "str", "choices": ["never", "when_needed"], "default": "never"},
    "stop_seconds": {"type": "int", "default": 60},
    "uri": {"type": "str", "default": URI},
}
RULES = {"required_if": [("state", "started", ["user", "memory", "disks"])]}
