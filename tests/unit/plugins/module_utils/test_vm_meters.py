# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Meters out of libvirt's flat names, sizes of volumes, and the log of a console."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.clachan.platform.plugins.module_utils import console_log, vm_meters, volume
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError

STATS = {
    "state.state": 1,
    "balloon.current": 2048,
    "balloon.maximum": 4096,
    "net.count": 2,
    "net.0.rx.bytes": 1,
    "net.0.tx.bytes": 2,
    "net.1.rx.bytes": 10,
    "block.count": 2,
    "block.0.name": "vda",
    "block.0.path": "/a.b.c",
    "block.0.rd.bytes": 100,
    "block.0.rd.reqs": 1,
    "block.1.name": "vdb",
    "block.1.path": "/d",
    "block.1.rd.bytes": 200,
    "block.1.wr.bytes": 5,
    "block.1.wr.reqs": 2,
}


class Domain:
    def __init__(self, name):
        self._name = name

    def name(self):
        return self._name

    def UUIDString(self):  # noqa: N802
        return "u"


class Connection:
    """Answers one question, once."""

    VIR_DOMAIN_STATS_STATE, VIR_DOMAIN_STATS_BALLOON, VIR_DOMAIN_STATS_INTERFACE, VIR_DOMAIN_STATS_BLOCK = 1, 4, 16, 32

    def getAllDomainStats(self, wanted, flags):  # noqa: N802
        assert (wanted, flags) == (53, 0)
        return [(Domain("a.b"), STATS), (Domain("a.c"), {"state.state": 5, "block.count": 0})]


def test_meters_are_sums(monkeypatch):
    # this process stands for QEMU; it has no thread that is a vCPU
    monkeypatch.setattr(vm_meters, "emulators", lambda: {"u": os.getpid()})
    while time.process_time() < 0.05:
        pass
    found = vm_meters.read_all(Connection, Connection(), balloon=True)
    assert found["a.c"] == {"uuid": "u", "state": "stopped", "disks": {}}
    assert found["a.b"]["disks"] == {"vda": "/a.b.c", "vdb": "/d"}
    meters = found["a.b"]["meters"]
    assert len(meters.pop("epoch").split("/")) == 2
    assert meters.pop("cpu_time_ns") > 0
    assert meters.pop("memory_resident_mib") > 0
    assert meters == {
        "vcpu_time_ns": 0,
        "vcpus": 0,
        "memory_mib": 2,
        "memory_maximum_mib": 4,
        "disk_read_bytes": 300,
        "disk_reads": 1,
        "disk_write_bytes": 5,
        "disk_writes": 2,
        "network_receive_bytes": 11,
        "network_send_bytes": 2,
    }


def test_a_process_that_ended_has_no_meters(monkeypatch):
    monkeypatch.setattr(vm_meters, "emulators", lambda: {})
    assert "meters" not in vm_meters.read_all(Connection, Connection(), balloon=True)["a.b"]


def test_sizes():
    assert [volume.size_of(text) for text in ("1MiB", "3 GiB", "2TiB")] == [1 << 20, 3 << 30, 2 << 40]
    for wrong in ("", "1", "1GB", "0GiB", "1.5GiB", "-1GiB", "1GiB; x"):
        with pytest.raises(HypervisorError, match="expected a number and MiB, GiB or TiB"):
            volume.size_of(wrong)
    assert [volume.size_text(size) for size in (1 << 20, 3 << 30, 5 << 40, 1000)] == [
        "1MiB",
        "3GiB",
        "5TiB",
        "1000 bytes",
    ]


def test_console_log_keeps_its_last_part(tmp_path):
    path = tmp_path / "console.log"
    assert console_log.bound(str(path), 1) is False
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a" * console_log.MIB)
        assert console_log.bound(str(path), 1) is False
        writer.write(b"end")
        assert console_log.bound(str(path), 1) is True
        writer.write(b"next")
    assert path.read_bytes() == b"next"
    kept = (tmp_path / "console.log.1").read_bytes()
    assert (len(kept), kept[-4:]) == (console_log.MIB, b"aend")
