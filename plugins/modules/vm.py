#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm
short_description: Keep a virtual machine as it is declared
author:
  - The Clachan maintainers (@clachan)
description:
  - Defines a libvirt domain, starts it, stops it, changes it while it runs where that can be done, and removes it.
  - The wanted domain is compared with the defined one by meaning. What libvirt adds (addresses, aliases, defaults) is
    no difference, so a second run changes nothing. Devices that were added by hand are removed.
  - More vCPUs up to O(cpu.maximum), memory by balloon, pinning, and disks that come or go are changed while it runs.
    What needs a restart is named in RV(restart_needed), and O(restart) says whether it is restarted for that.
  - Disks are never created or removed; see M(clachan.platform.volume) for that.
  - A disk, a tap or a MAC address that another domain of this node has is refused, whatever name is used for it.
options:
  name:
    description: The instance's path, which is the domain's name.
    type: str
    required: true
  uuid:
    description:
      - The domain's UUID, the instance's id. A domain of this name with another UUID is an error.
      - When it is not given, libvirt makes one.
    type: str
  state:
    description:
      - V(started) and V(stopped) define the domain first. V(absent) removes the domain, its sockets and its logs, and
        leaves its disks.
      - V(stopped) without O(disks) stops a domain as it is, and is content with none.
    type: str
    choices: [started, stopped, absent]
    default: started
  user:
    description: The unix user that QEMU runs as. It is not root, and must be able to read and write the disks.
    type: str
  accelerator:
    description:
      - V(auto) is KVM where a kernel really boots with it, found out once after each boot of the node, and else QEMU's
        software emulation, with a warning.
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  kvm_probe_kernel:
    description: The kernel that V(auto) tries KVM with. By default the newest in C(/boot).
    type: str
  cpu:
    description: The virtual CPUs.
    type: dict
    suboptions:
      count:
        description: How many.
        type: int
        default: 1
      maximum:
        description: How many it can have without a restart. By default O(cpu.count).
        type: int
      model:
        description:
          - V(auto), or a model and its features in QEMU's form, like V(qemu64,+ssse3,+aes).
          - V(auto) is V(host-passthrough) with KVM, and else what emulation can do and distributions expect.
        type: str
        default: auto
      pinning:
        description: For each vCPU in turn the node's CPUs that it may run on, like V(0-1,3).
        type: list
        elements: str
  memory:
    description: The memory. Needed when the domain is defined.
    type: dict
    suboptions:
      mib:
        description: How much, in MiB.
        type: int
        required: true
      maximum_mib:
        description: How much it can have without a restart. By default O(memory.mib).
        type: int
      balloon:
        description: Whether it can be changed while the domain runs.
        type: bool
        default: true
      hugepages:
        description: Whether it is taken from the node's huge pages.
        type: bool
        default: false
  disks:
    description: The disks, the system disk first. Needed when the domain is defined.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: A file or a block device. Links are refused, except below C(/dev).
        type: str
        required: true
      format:
        description: What is in it. It is never guessed, as a guest could write the header of another format.
        type: str
        choices: [raw, qcow2]
        default: qcow2
      backing:
        description: The image that a qcow2 file is an overlay of. What the file's own header names is not believed.
        type: str
      backing_format:
        description: The format of O(disks[].backing).
        type: str
        choices: [raw, qcow2]
        default: qcow2
      target:
        description: The name V(vda) to V(vdz). By default the one it has, else the first that is free.
        type: str
      cache:
        description: V(auto) is V(none) where the file system can do it, else V(writeback).
        type: str
        choices: [auto, none, writeback, writethrough, directsync, unsafe]
        default: auto
      io:
        description: V(auto) is V(native) without the node's page cache, else V(threads).
        type: str
        choices: [auto, native, threads, io_uring]
        default: auto
      discard:
        description: Whether what the guest discards is given back to the node.
        type: bool
        default: true
      readonly:
        description: Whether the guest may only read.
        type: bool
        default: false
      serial:
        description: At most 20 letters, by which the guest finds it in C(/dev/disk/by-id).
        type: str
  seed:
    description: The ISO image made by M(clachan.platform.seed), which becomes a read-only disk.
    type: str
  interfaces:
    description: The network devices.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description: V(tap) is a tap that exists already and stays when the domain goes.
        type: str
        choices: [tap, bridge, macvtap]
        default: tap
      device:
        description: The tap, the bridge, or the node's device that a macvtap is made on.
        type: str
        required: true
      mac:
        description: The MAC address.
        type: str
        required: true
      mode:
        description: Of a macvtap; by default V(bridge).
        type: str
        choices: [bridge, private, vepa]
  console_socket:
    description:
      - Where the serial console listens, for root only. libvirt makes it as root, so its directory and those above must
        be root's alone.
    type: str
  console_log:
    description: What the serial console said. For its directory the same holds.
    type: str
  console_log_mib:
    description:
      - A log that has become longer is moved to a file with C(.1) appended in the next run of this module. Where
        virtlogd runs, it bounds the log itself at each moment.
    type: int
    default: 4
  vnc:
    description: The unix socket where VNC listens, in a directory that O(user) can write. By default there is no VNC.
    type: str
  agent:
    description: Whether there is a channel for QEMU's guest agent.
    type: bool
    default: true
  rng:
    description: Whether the guest has a source of random numbers.
    type: bool
    default: true
  restart:
    description: Whether a running domain is restarted for a change that it cannot take while it runs.
    type: str
    choices: [never, when_needed]
    default: never
  stop_seconds:
    description: How long the guest may take to power off when it is asked to, before it is ended.
    type: int
    default: 60
  uri:
    description: Which libvirt.
    type: str
    default: qemu:///system
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Shows the domain's meaning before and after, not its XML.
    support: full
requirements:
  - libvirt-python (Debian's python3-libvirt), in this Python or the system's
"""

EXAMPLES = r"""
- name: Keep a VM running
  clachan.platform.vm:
    name: lab.hadoop.worker1
    uuid: 0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a11
    user: clachan_003
    cpu: {count: 2, maximum: 4}
    memory: {mib: 2048, maximum_mib: 4096}
    disks:
      - path: /var/lib/clachan/slots/s003/var/system.qcow2
        backing: /var/lib/clachan/images/0f3a/disk.qcow2
      - {path: /var/lib/clachan/slots/s003/var/data.raw, format: raw, serial: data}
    seed: /var/lib/clachan/slots/s003/var/seed.iso
    interfaces:
      - {device: cv3, mac: "52:54:00:aa:bb:cc"}
    console_socket: /var/lib/clachan/slots/s003/log/console.sock
    console_log: /var/lib/clachan/slots/s003/log/console.log
    restart: when_needed

- name: Remove a VM
  clachan.platform.vm:
    name: lab.hadoop.worker1
    state: absent
"""

RETURN = r"""
state:
  description: How the domain is, or would be.
  returned: success
  type: str
  choices: [started, stopped, absent]
uuid:
  description: The domain's UUID.
  returned: success
  type: str
actions:
  description: What was done, in order, or in check mode would be.
  returned: success
  type: list
  elements: str
  sample: [defined, started]
restart_needed:
  description: What of the running domain is not yet as it is defined, as dotted names like V(cpu.model).
  returned: success
  type: list
  elements: str
accelerator:
  description: V(kvm) or V(qemu) (software emulation).
  returned: unless the domain is to be absent
  type: str
warning:
  description: What is worse here than it could be; none when nothing is.
  returned: success
  type: str
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import (
    console_log,
    domain,
    domain_compare,
    domain_conflicts,
    kvm_probe,
    vm_record,
)
from ansible_collections.clachan.platform.plugins.module_utils.domain_control import Control
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import (
    HypervisorError,
    confinement,
    connect,
    end_orphans,
    libvirt,
    locked,
    processes,
)
from ansible_collections.clachan.platform.plugins.module_utils.user_process import UserProcessError, as_user
from ansible_collections.clachan.platform.plugins.module_utils.vm_options import OPTIONS, RULES


class Vm:
    """Brings one domain to what its options say."""

    def __init__(self, params, check):
        self._params, self._check = params, check
        domain.check_name(params["name"])
        if params["uuid"] is not None:
            domain.check_uuid(params["uuid"])
        self._control = Control(connect(params["uri"]), params["name"], params["uuid"])
        self._before, self._was = self._control.definition, self._control.state
        self.actions, self.restart_needed, self._warning = [], [], None

    def run(self):
        """The module's result, but for failures."""
        if self._params["state"] == "absent":
            after = None
            self._remove()
        elif self._params["state"] == "stopped" and not self._params["disks"]:
            after = self._before
            self._stop(after)
        else:
            after = self._form()
            self._define(after)
            (self._start if self._params["state"] == "started" else self._stop)(after)
            self._look_around()
        return self._result(after)

    def _form(self):
        for name in ("user", "memory"):
            if self._params[name] is None:
                raise HypervisorError("%s: none, expected it for a domain that is to be defined" % name)
        accelerator, self._warning = kvm_probe.choose(self._params["accelerator"], self._params["kvm_probe_kernel"])
        known = self._before or self._control.running
        targets = {disk["path"]: target for target, disk in known["disks"].items()} if known else {}
        return domain.wanted(self._params, accelerator, targets, self._check)

    def _define(self, after):
        """Change the definition, and the running domain as far as it takes that."""
        before, running = self._before, self._control.running
        live = domain_compare.Live(running, after) if running else None
        differs = before is None or bool(domain_compare.differences(before, after))
        self.restart_needed = list(live.restart) if live else []
        if not differs and not (live and live.anything):
            return
        with locked("domains"):
            known = [disk["path"] for form in (before, running) if form for disk in form["disks"].values()]
            domain_conflicts.refuse_conflicts(after, self._control.others())
            domain_conflicts.refuse_used_devices(after, known)
            # the running domain first: a run that is killed in between finds the definition still to be changed
            if live:
                self._change(live, after)
            if differs:
                self._do("defined" if before is None else "redefined", self._control.define, after)

    def _change(self, live, after):
        names = ["cpu.count"] if live.vcpus else []
        names += ["cpu.pinning"] if live.pins else []
        names += ["disks.%s" % target for target in [*live.unplug, *live.plug]]
        refused = [] if self._check or not names else self._control.change(live)
        self.restart_needed = sorted([*self.restart_needed, *refused])
        self.actions += ["changed %s while it runs" % name for name in names if name not in refused]
        size = domain_compare.balloon_size(self._before or after, self._control.running, after)
        if size is not None:
            self._do("changed memory.mib while it runs", self._control.set_balloon, size)

    def _do(self, action, verb, *arguments):
        self.actions.append(action)
        if not self._check:
            verb(*arguments)

    def _start(self, after):
        if self._was == "paused":
            self._do("resumed", self._control.resume)
        elif self._control.running is None:
            self._do("started", self._control.start)
        elif self.restart_needed and self._params["restart"] == "when_needed":
            self._do("stopped", self._control.stop, self._params["stop_seconds"])
            self._do("started", self._control.start)
            self.restart_needed = []

    def _stop(self, _after):
        if self._control.running is not None:
            if self._was == "paused":  # a guest that does not run hears nothing
                self._do("resumed", self._control.resume)
            self._do("stopped", self._control.stop, self._params["stop_seconds"])
        elif not self._check and end_orphans(self._control.uuid):
            self.actions.append("ended a process without a domain")
        self.restart_needed = []

    def _remove(self):
        known = self._control.running or self._before
        if self._control.running is not None:
            self._do("stopped", self._control.stop, self._params["stop_seconds"])
        if self._before is not None:
            self._do("undefined", self._control.undefine)
        uuid = self._control.uuid
        if uuid and self._control.running is None and processes(uuid):
            self._do("ended a process without a domain", end_orphans, uuid)
        for path in self._leftovers(known):
            if os.path.lexists(path):
                self._do("removed %s" % path, os.unlink, path)
        for path in self._control.dead_folders():
            self._do("removed %s" % path, shutil.rmtree, path)
        self._remove_vnc(known)
        if uuid and not self._check:
            vm_record.forget(uuid)

    def _remove_vnc(self, known):
        """The socket is in the user's own directory, so only that user removes it."""
        path = known["vnc"] if known else self._params["vnc"]
        label = known["user"] if known else self._params["user"] and domain.label(self._params["user"])
        if path and label and os.path.lexists(domain.check_socket("vnc", path)):
            uid = int(label.split(":")[0].lstrip("+"))
            self._do("removed %s" % path, as_user, uid, lambda: os.unlink(path))

    def _leftovers(self, known):
        """What libvirt and this module wrote for the domain, in directories that are root's alone."""
        consoles = [{"socket": self._params["console_socket"], "log": self._params["console_log"]}]
        consoles += [known["console"]] if known else []
        logs = {one["log"] for one in consoles if one["log"]}
        found = logs | {log + ".1" for log in logs} | {one["socket"] for one in consoles if one["socket"]}
        # libvirt's own log of the domain stays as well when the domain is gone
        return sorted(filter(domain.is_roots_alone, found)) + ["/var/log/libvirt/qemu/%s.log" % self._params["name"]]

    def _look_around(self):
        """What is done at each run while the domain runs, and is no change of it."""
        if self._check or self._params["state"] != "started":
            return
        if self._params["console_log"]:
            console_log.bound(self._params["console_log"], self._params["console_log_mib"])
        if "started" in self.actions:
            found = confinement(self._control.uuid)
            if found and not found["sandbox"]:
                text = "QEMU runs without its sandbox: expected seccomp_sandbox = 1 in libvirt's qemu.conf"
                self._warning = "; ".join(filter(None, (self._warning, text)))

    def _result(self, after):
        state = self._params["state"]
        before = dict(domain_compare.shown(self._before), state=self._was) if self._was != "absent" else {}
        then = {} if after is None else dict(domain_compare.shown(dict(after, uuid=self._control.uuid)), state=state)
        result = {
            "changed": bool(self.actions),
            "state": state,
            "uuid": self._control.uuid,
            "actions": self.actions,
            "restart_needed": self.restart_needed,
            "warning": self._warning,
            "diff": {"before": before, "after": then},
        }
        return dict(result, accelerator=after["accelerator"]) if after else result


def main():
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True, **RULES)
    try:
        binding = libvirt()
        seen = vm_record.seen(module.params)
        try:
            result = Vm(module.params, module.check_mode).run()
        except binding.libvirtError as problem:
            raise HypervisorError("domain %s: %s" % (module.params["name"], problem)) from None
    except (HypervisorError, UserProcessError, OSError) as problem:
        module.fail_json(msg=str(problem))
    difference = result.pop("diff")
    if module._diff:
        result["diff"] = difference
    if not result["changed"] and not result["restart_needed"] and not module.check_mode:
        vm_record.remember(result["uuid"], seen, result)
    if result["warning"]:
        module.warn(result["warning"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
