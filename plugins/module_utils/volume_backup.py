# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk saved while its VM runs: QEMU writes the content of one moment to a file (libvirt's backup job, push mode).

The moment is when the job begins. Where the guest's agent answers, the guest's file systems are frozen around it, for
as long as that takes only. A run that is killed leaves the job to QEMU; the next one ends it, and thaws what is frozen.
"""

from __future__ import annotations

import os
import re
import time
import xml.etree.ElementTree as ET

from ansible_collections.clachan.platform.plugins.module_utils.domain import is_roots_alone
from ansible_collections.clachan.platform.plugins.module_utils.domain_xml import agent_connected
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError

AGENT_SECONDS = 20
"""How long the guest's agent may take for an answer; libvirt would wait for it for ever."""
END_SECONDS = 30
POLL_SECONDS = 0.2
OWN = r"\..+\.new"
"""The file of a backup that is being made."""


class LiveBackup:
    """The backup of one disk of a domain that runs."""

    def __init__(self, binding, domain, target, seconds):
        """seconds: after which it is given up."""
        self._api, self._domain, self._target, self._seconds = binding, domain, target, seconds

    def write(self, path):
        """Write the disk's content to a qcow2 file that has its size and is QEMU's user's.

        Returns "frozen" when the guest's file systems were frozen, else "crash": as after a loss of power.
        """
        try:
            consistency = self._begin(self._xml(path))
            self._wait()
        except BaseException:
            self._cancel()
            raise
        return consistency

    def _xml(self, path):
        root = ET.Element("domainbackup", mode="push")
        disk = ET.SubElement(ET.SubElement(root, "disks"), "disk", name=self._target, backup="yes", type="file")
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "target", file=path)
        return ET.tostring(root, encoding="unicode")

    def _begin(self, text):
        flags = self._api.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
        if not agent_connected(self._domain.XMLDesc(0)):
            self._domain.backupBegin(text, None, flags)
            return "crash"
        frozen = False
        try:
            frozen = self._freeze()
            self._domain.backupBegin(text, None, flags)
        finally:
            # also when it was not: it may be frozen since a run that was killed, and then refuses to be again
            self._thaw(frozen)
        return "frozen" if frozen else "crash"

    def _freeze(self):
        try:
            self._domain.agentSetResponseTimeout(AGENT_SECONDS, 0)
            return self._domain.fsFreeze() > 0
        except self._api.libvirtError:
            return False

    def _thaw(self, frozen):
        try:
            self._domain.fsThaw()
        except self._api.libvirtError as problem:
            if frozen:
                raise HypervisorError(
                    "domain %s: its file systems stay frozen (%s), expected its agent to thaw them"
                    % (self._domain.name(), problem)
                ) from None

    def _wait(self):
        deadline = time.monotonic() + self._seconds
        while True:
            found = self._domain.jobStats()
            if found["type"] == self._api.VIR_DOMAIN_JOB_NONE:
                break
            if time.monotonic() > deadline:
                done, whole = (found.get("disk_" + key, 0) >> 20 for key in ("processed", "total"))
                self._fail("%d of %d MiB after %d s, expected all of it" % (done, whole, self._seconds))
            time.sleep(POLL_SECONDS)
        found = self._domain.jobStats(self._api.VIR_DOMAIN_JOB_STATS_COMPLETED)
        if not found.get("success"):
            self._fail("%s, expected it to succeed" % found.get("errmsg", "ended with the domain"))

    def _fail(self, said):
        raise HypervisorError("backup of domain %s, disk %s: %s" % (self._domain.name(), self._target, said))

    def end_leftover(self):
        """End what a run that was killed has begun; raises HypervisorError for somebody else's job."""
        text = self._running_job()
        if text is None:
            return
        files = [one.get("file", "") for one in ET.fromstring(text).iterfind("disks/disk/target")]  # noqa: S314
        foreign = [path for path in files if not re.fullmatch(OWN, os.path.basename(path)) or not is_roots_alone(path)]
        if foreign or not files:
            raise HypervisorError(
                "domain %s: another backup of it runs, to %s, expected none"
                % (self._domain.name(), ", ".join(foreign) or "no file")
            )
        self._cancel()

    def _running_job(self):
        try:
            return self._domain.backupGetXMLDesc(0)
        except self._api.libvirtError as problem:
            if problem.get_error_code() == self._api.VIR_ERR_NO_DOMAIN_BACKUP:
                return None
            raise

    def _cancel(self):
        try:
            deadline = time.monotonic() + END_SECONDS
            while self._running_job() is not None and time.monotonic() < deadline:
                self._domain.abortJob()
                time.sleep(POLL_SECONDS)
        except self._api.libvirtError:
            pass  # it ended meanwhile, or the domain did
