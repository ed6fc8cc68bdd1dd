# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which running domain uses a volume, asked only when something is to be done to it."""

from __future__ import annotations

import os

from ansible_collections.clachan.platform.plugins.module_utils import domain_xml
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import connect
from ansible_collections.clachan.platform.plugins.module_utils.volume_backup import LiveBackup


class Use:
    """Answers from libvirt, which is asked once at most."""

    def __init__(self, binding, uri):
        self._api, self._uri = binding, uri
        self._found = None

    def running(self, path):
        """The name of the domain that runs with a volume; None when there is none."""
        found = self._domains().get(os.path.realpath(path))
        return found and found[0].name()

    def backup(self, path, seconds):
        """The backup of a volume that a domain runs with, given up after so many seconds."""
        domain, target = self._domains()[os.path.realpath(path)]
        return LiveBackup(self._api, domain, target, seconds)

    def lock(self, path):
        """The lock that a backup of the domain that runs with a volume holds, as a domain does one at a time."""
        return "backup-%s" % self._domains()[os.path.realpath(path)][0].UUIDString()

    def resize(self, path, size):
        """Tell the domain that runs with a volume of its new size; QEMU makes the file larger."""
        domain, target = self._domains()[os.path.realpath(path)]
        domain.blockResize(target, size, self._api.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    def _domains(self):
        """Real path -> (domain that runs, target)."""
        if self._found is None:
            self._found = {}
            for domain in connect(self._uri).listAllDomains(self._api.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                for target, disk in domain_xml.read(domain.XMLDesc(0))["disks"].items():
                    self._found[os.path.realpath(disk["path"])] = (domain, target)
        return self._found
