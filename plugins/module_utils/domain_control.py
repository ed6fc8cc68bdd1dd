# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to one domain through libvirt. Each verb is safe to repeat after a kill of this, libvirtd or QEMU."""

from __future__ import annotations

import glob
import os
import time

from ansible_collections.clachan.platform.plugins.module_utils import domain_xml
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import (
    HypervisorError,
    end_orphans,
    libvirt,
    processes,
)

ASK_SECONDS = 5
"""A guest that is still booting does not hear the power button; so it is pressed again."""
UNPLUG_SECONDS = 1
NOTICE_SECONDS = 10
"""libvirtd may be slow to hear that a QEMU has ended."""
FOLDERS = ("/var/lib/libvirt/qemu", "/var/lib/libvirt/qemu/channel/target")
"""Where libvirt makes a folder for each start of a domain, and removes it at its end."""


class Control:
    """One domain: its definition (a form, see domain.py), its form while it runs, and the verbs."""

    def __init__(self, connection, name, uuid):
        self._api, self._connection = libvirt(), connection
        self.name, self.uuid = name, uuid
        self.look()

    def look(self):
        """Learn anew how the domain is."""
        self._domain = self._find()
        self.definition = self.running = None
        self.paused = self.connected = False
        if self._domain is None:
            return
        state = self._domain.state()[0]
        if self._domain.isPersistent():
            self.definition = domain_xml.read(self._domain.XMLDesc(self._api.VIR_DOMAIN_XML_INACTIVE))
        if self._runs(state):
            text = self._domain.XMLDesc(0)
            self.running, self.connected = domain_xml.read(text), domain_xml.agent_connected(text)
            self.paused = state == self._api.VIR_DOMAIN_PAUSED

    def _runs(self, state):
        """Whether a domain in this state has a QEMU; waits for a libvirtd that does not yet know that it has ended."""
        if state in (self._api.VIR_DOMAIN_SHUTOFF, self._api.VIR_DOMAIN_CRASHED):
            return False
        deadline = time.monotonic() + NOTICE_SECONDS
        while not processes(self._domain.UUIDString()) and time.monotonic() < deadline:
            if not self._domain.isActive():
                return False
            time.sleep(0.1)
        return True

    @property
    def exists(self):
        return self._domain is not None

    @property
    def state(self):
        if self._domain is None:
            return "absent"
        return "stopped" if self.running is None else "paused" if self.paused else "started"

    def _find(self):
        """The domain of this name; raises HypervisorError where name and uuid are not of one domain."""
        named = self._lookup(self._connection.lookupByName, self.name)
        if not self.uuid:
            self.uuid = named and named.UUIDString()
            return named
        if named is not None and named.UUIDString() != self.uuid:
            raise HypervisorError(
                "domain %s: has the uuid %s, expected %s" % (self.name, named.UUIDString(), self.uuid)
            )
        if named is None:
            other = self._lookup(self._connection.lookupByUUIDString, self.uuid)
            if other is not None:
                raise HypervisorError("uuid %s: is domain %s's, expected %s" % (self.uuid, other.name(), self.name))
        return named

    def _lookup(self, method, key):
        try:
            return method(key)
        except self._api.libvirtError as problem:
            if problem.get_error_code() == self._api.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def dead_folders(self):
        """What a libvirtd that was killed left of earlier starts: folders with the number of no domain that runs."""
        active = self._connection.listDomainsID()
        # libvirt cuts names after 20 letters, so one may be of another VM's earlier start, which is dead too
        found = [path for place in FOLDERS for path in glob.glob(place + "/domain-*-%s" % self.name[:20])]
        numbers = {path: os.path.basename(path).split("-")[1] for path in found}
        return sorted(path for path, number in numbers.items() if number.isdigit() and int(number) not in active)

    def others(self):
        """The forms of all other domains, as defined and as they run."""
        found = []
        for domain in self._connection.listAllDomains():
            try:
                if domain.name() == self.name:
                    continue
                found.append(domain_xml.read(domain.XMLDesc(self._api.VIR_DOMAIN_XML_INACTIVE)))
                if domain.isActive():
                    found.append(domain_xml.read(domain.XMLDesc(0)))
            except self._api.libvirtError as problem:
                if problem.get_error_code() != self._api.VIR_ERR_NO_DOMAIN:  # else it was removed meanwhile
                    raise
        return found

    def define(self, form):
        self._domain = self._connection.defineXML(domain_xml.write(form))
        self.uuid = self._domain.UUIDString()

    def start(self):
        end_orphans(self.uuid)
        try:
            self._domain.create()
        except self._api.libvirtError as problem:
            if problem.get_error_code() != self._api.VIR_ERR_OPERATION_INVALID or not self._domain.isActive():
                raise HypervisorError("domain %s: %s, expected it to start" % (self.name, problem)) from None

    def resume(self):
        self._domain.resume()

    def stop(self, seconds):
        """Ask the guest to power off, and end the domain when it did not within that time. Says whether it did."""
        deadline, asked = time.monotonic() + seconds, 0.0
        while self._domain.isActive():
            now = time.monotonic()
            if now >= deadline:
                self._destroy()
                return False
            if not asked or now - asked >= ASK_SECONDS:
                self._ask()
                asked = now
            time.sleep(0.1)
        return True

    def _ask(self):
        flags = [self._api.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN]
        try:
            if domain_xml.agent_connected(self._domain.XMLDesc(0)):
                flags.insert(0, self._api.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
            for flag in flags:
                try:
                    self._domain.shutdownFlags(flag)
                    return
                except self._api.libvirtError:
                    continue
        except self._api.libvirtError:
            if self._domain.isActive():
                raise

    def _destroy(self):
        for flags in (self._api.VIR_DOMAIN_DESTROY_GRACEFUL, 0):
            try:
                self._domain.destroyFlags(flags)
                return
            except self._api.libvirtError as problem:
                if not self._domain.isActive():
                    return
                if not flags:
                    raise HypervisorError("domain %s: %s, expected it to end" % (self.name, problem)) from None

    def undefine(self):
        """Remove the definition with all that libvirt keeps for it."""
        api = self._api
        flags = api.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | api.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        flags |= api.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | api.VIR_DOMAIN_UNDEFINE_NVRAM
        try:
            self._domain.undefineFlags(flags)
        except api.libvirtError as problem:
            if problem.get_error_code() not in (api.VIR_ERR_NO_DOMAIN, api.VIR_ERR_OPERATION_INVALID):
                raise

    def change(self, live):
        """Make the changes that a running domain takes (see domain_compare.Live); returns the names of those that the
        guest or QEMU did not take, which its next start will bring."""
        refused = [] if live.vcpus is None or self._set_vcpus(live.vcpus) else ["cpu.count"]
        for number, cpus in live.pins.items():
            self._domain.pinVcpuFlags(int(number), _mask(cpus), self._api.VIR_DOMAIN_AFFECT_LIVE)
        refused += ["disks.%s" % target for target, disk in live.unplug.items() if not self._unplug(target, disk)]
        refused += ["disks.%s" % target for target, disk in live.plug.items() if not self._plug(target, disk)]
        return refused

    def set_balloon(self, mib):
        self._domain.setMemoryFlags(mib * 1024, self._api.VIR_DOMAIN_AFFECT_LIVE)

    def _set_vcpus(self, count):
        try:
            self._domain.setVcpusFlags(count, self._api.VIR_DOMAIN_AFFECT_LIVE)
        except self._api.libvirtError:
            return False
        return True

    def _plug(self, target, disk):
        try:
            self._domain.attachDeviceFlags(domain_xml.write_disk(target, disk), self._api.VIR_DOMAIN_AFFECT_LIVE)
        except self._api.libvirtError as problem:
            if "PCI" in str(problem):  # all ports are taken
                return False
            raise HypervisorError("disk %s of domain %s: %s" % (disk["path"], self.name, problem)) from None
        return True

    def _unplug(self, target, disk):
        """The guest has to let go of it: one that does not answer keeps it."""
        try:
            self._domain.detachDeviceFlags(domain_xml.write_disk(target, disk), self._api.VIR_DOMAIN_AFFECT_LIVE)
        except self._api.libvirtError:
            pass
        deadline = time.monotonic() + UNPLUG_SECONDS
        while target in domain_xml.read(self._domain.XMLDesc(0))["disks"]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def _mask(cpus):
    return tuple(number in cpus for number in range(max(cpus) + 1))
