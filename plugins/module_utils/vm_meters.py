# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""States and meters of all domains of a node, from one question to libvirt (`getAllDomainStats`).

libvirt asks each QEMU in turn, about 2 ms for each group of counters. So it is asked only for what only QEMU knows; how
much processor time QEMU's threads took, and its memory, the kernel says for nothing.
"""

from __future__ import annotations

import os

from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import emulators

# virDomainState: running, blocked, paused, in shutdown, shut off, crashed, suspended by the guest
STATES = {1: "started", 2: "started", 3: "paused", 4: "started", 5: "stopped", 6: "crashed", 7: "paused"}
GROUPS = ("STATE", "INTERFACE", "BLOCK")
DISK = {
    "disk_read_bytes": "rd.bytes",
    "disk_reads": "rd.reqs",
    "disk_write_bytes": "wr.bytes",
    "disk_writes": "wr.reqs",
}
# what the node sends is what the guest receives; libvirt has already turned it round
NETWORK = {"network_receive_bytes": "rx.bytes", "network_send_bytes": "tx.bytes"}
VCPU_THREADS = ("CPU ", "ALL CPUs")
TICK = 1000000000 // os.sysconf("SC_CLK_TCK")


def read_all(binding, connection, balloon=False):
    """Name -> {uuid, state, disks, meters}; meters of those that run (see clachan.platform.vm_info)."""
    groups = GROUPS + (("BALLOON",) if balloon else ())
    wanted = sum(getattr(binding, "VIR_DOMAIN_STATS_%s" % group) for group in groups)
    answers = connection.getAllDomainStats(wanted, 0)
    pids = emulators()
    return {
        domain.name(): _read(domain.UUIDString(), values, pids.get(domain.UUIDString()), balloon)
        for domain, values in answers
    }


def _read(uuid, values, pid, balloon):
    state = STATES.get(values["state.state"], "stopped")
    disks = {disk["name"]: disk.get("path") for disk in _each(values, "block")}
    found = {"uuid": uuid, "state": state, "disks": disks}
    process = _process(pid) if pid and state in ("started", "paused") else None
    if process:  # else it ended after libvirt was asked
        found["meters"] = dict(process, **_counters(values))
        if balloon:
            found["meters"]["memory_mib"] = values.get("balloon.current", 0) // 1024
            found["meters"]["memory_maximum_mib"] = values.get("balloon.maximum", 0) // 1024
    return found


def _counters(values):
    disks, links = _each(values, "block"), _each(values, "net")
    found = {name: sum(one.get(key, 0) for one in disks) for name, key in DISK.items()}
    found.update({name: sum(one.get(key, 0) for one in links) for name, key in NETWORK.items()})
    return found


def _each(values, group):
    """The numbered members of a group: "block.0.path" becomes {"path": ...} of the first."""
    members = [{} for _number in range(values.get("%s.count" % group, 0))]
    for key, value in values.items():
        parts = key.split(".", 2)
        if parts[0] == group and len(parts) == 3 and parts[1].isdigit() and int(parts[1]) < len(members):
            members[int(parts[1])][parts[2]] = value
    return members


def _process(pid):
    """What the kernel says of a QEMU process; None when it is gone."""
    try:
        fields = _stat("/proc/%d/stat" % pid)
        threads = [_thread("/proc/%d/task/%s" % (pid, one)) for one in os.listdir("/proc/%d/task" % pid)]
    except OSError:
        return None
    vcpus = [time for name, time in threads if name.startswith(VCPU_THREADS)]
    return {
        "epoch": "%s/%s" % (_boot(), fields[19]),
        "cpu_time_ns": (int(fields[11]) + int(fields[12])) * TICK,
        "vcpu_time_ns": sum(vcpus),
        "vcpus": len(vcpus),
        "memory_resident_mib": int(fields[21]) * os.sysconf("SC_PAGE_SIZE") >> 20,
    }


def _thread(folder):
    """(name, nanoseconds that it ran) of a thread; an empty name when it is gone."""
    try:
        name = _text(folder + "/comm").strip()
        return name, int(_text(folder + "/schedstat").split()[0]) if name.startswith(VCPU_THREADS) else 0
    except OSError:
        return "", 0


def _stat(path):
    """Fields of /proc/PID/stat behind the name, which may hold anything."""
    return _text(path).rpartition(")")[2].split()


def _boot():
    return _text("/proc/sys/kernel/random/boot_id").strip()


def _text(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
