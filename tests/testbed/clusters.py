#!/usr/bin/python3
"""Orders clusters of virtual machines on a real machine and writes the transcript, docs/vm-clusters-transcript.md.

`clusters.py` runs it and writes the document, `clusters.py --output FILE` writes elsewhere; `clusters.py --check` boots
nothing and says whether the document has the commands of this script.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from testbed import checkout, images, network
from testbed.base import VM_NODE_PACKAGES
from testbed.host import REPOSITORY, LabError, testbed, until
from testbed.lab import Lab
from testbed.story import CHECKOUT, Act, Step, Story, recap, script, tell
from testbed.wheelhouse import wheelhouse

DOCUMENT = REPOSITORY / "docs" / "vm-clusters-transcript.md"
DISK = "/srv/images/disk.qcow2"
PLAYBOOK = """\
- name: Members reach each other and nobody else
  hosts: members_home_lab
  gather_facts: false
  remote_user: root
  tasks:
    - name: Reach every member, also this one
      ansible.builtin.wait_for:
        host: "{{ hostvars[item].clachan_instance.slot.addresses.ipv4 }}"
        port: 22
        timeout: 60
      loop: "{{ groups['software_vm'] | intersect(groups['cluster_home_lab']) }}"

    - name: Try to reach another machine of the network
      ansible.builtin.wait_for:
        host: "{{ canary }}"
        port: 22
        timeout: 8
      register: tried
      failed_when: tried is not failed
"""
MACHINES = ("oak", "elm")
SHA256 = '"$(./clachan image show node --sha256)"'
GONE = ("domain", "volume", "image", "tap", "rule")
"""What there is none of when the last cluster is gone."""
INSIDE = ("m1", "m2", "probe_m1", "probe_m2", "web_m1", "web_m2")
STARTED = [rf"^home\.lab{name} +\S+ +started +started +" for name in ("", *(rf"\.{name}" for name in INSIDE))]
"""Lines of the list of instances: wanted and is."""


class Clusters:
    """The story, and what it does to the machines between the commands."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def story(self) -> Story:
        return [*self._begin(), *self._order(), *self._use(), *self._guard(), *self._break(), *self._end()]

    def _begin(self) -> Story:
        return [
            "# A cluster of virtual machines: the transcript\n\n"
            "One machine becomes controller and node, and a tenant orders a cluster on it. This is the transcript of "
            "`tests/testbed/clusters.py`, which `./dev heavy --long` runs on a real machine; what differs from run to "
            "run stands in `<>`. What the pieces are is in [vm-clusters](vm-clusters.md).\n\n"
            "The machine, oak, is a bare Debian 12 with a clone of the repository. It has no KVM, so its VMs are "
            "emulated. Elm is another machine of the same network.",
            Step("oak", "./clachan up --no-demo", says=["^home "], show=_status),
            "An image was built with `clachan image build` on a machine that reaches Debian's mirrors "
            "(see [images](images.md)); here it is taken in.",
            Step("oak", f"./clachan image import {DISK} node", says=[r"[0-9a-f]{64}"]),
            "The node gets libvirt, QEMU and nftables by the supply of the software `vm`; the software `cluster` "
            "orders VMs.",
            Step("oak", "./clachan supply here clachan.platform.vm", says=["present"]),
            Step("oak", "./clachan supply here clachan.platform.cluster", says=["present"]),
            "And a software that shall run inside, as in the [quickstart](quickstart.md).",
            Step("oak", "./clachan software new acme.site.page", says=["roles/page/tasks/main.yml"]),
            Step("oak", "./clachan software register site", says=[r"acme\.site\.page"]),
        ]

    def _order(self) -> Story:
        software = '\'[{"name": "web", "software": "acme.site.page"}]\''
        keys = '"[\\"$(cat ~/.ssh/id_ed25519.pub)\\"]"'
        order = (
            f"./clachan request home.lab clachan.platform.cluster -p cluster_size=2 -p cluster_image={SHA256}"
            f" -p cluster_authorized_keys={keys} -p cluster_software={software}"
        )
        return [
            "## One order\n\nTwo members, each with a web page inside. The order is done when every member has joined "
            "as a node of the tenant and everything in it is as wanted.",
            Step("oak", "ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519"),
            Step("oak", f"{order} --timeout 900", says=[r"^ *state +started"]),
            Step("oak", "./clachan instance list", says=STARTED),
            "The members are nodes that belong to the tenant.",
            Step("oak", "./clachan node list", says=[r"vm_[0-9a-f]{12}.*online.*home"]),
            "The same order again changes nothing.",
            Step("oak", order, says=["unchanged"]),
        ]

    def _use(self) -> Story:
        return [
            "## A playbook of one's own\n\nThe members are a group of the inventory. SSH goes over the agents' own "
            "outgoing connections (`clachan instance connect`), and the machines' host keys are known before they "
            "answer. This playbook tries what the isolation promises: elm is another machine of oak's network.",
            Act(self._bring_playbook),
            Step("oak", "cat members.yml"),
            Step("oak", f"ssh-keyscan -t ed25519 {self._address()} 2>/dev/null | cut -c1-30", says=["ssh-ed25519"]),
            Step("oak", "./clachan instance connect home.lab.m1 < /dev/null | head -c 7", says=[r"^SSH-2\.0"]),
            Step(
                "oak",
                f".venv/bin/ansible-playbook -i inventories/standalone members.yml -e canary={self._address()}",
                says=[r"failed=0"],
                show=recap,
            ),
        ]

    def _address(self) -> str:
        """Of elm: the second machine of the lab."""
        return f"{network.SUBNET}.12"

    def _bring_playbook(self) -> None:
        elm = self.lab.machine("elm").address
        if elm != self._address():
            raise LabError(f"machine elm: at {elm}, expected {self._address()}")
        write = ["sh", "-c", f"cat > {CHECKOUT}/members.yml"]
        self.lab.machine("oak").execute(write, text=PLAYBOOK)

    def _guard(self) -> Story:
        return [
            "## Somebody takes the rules away\n\nWhat keeps members apart from others is there again before one could "
            "count to one.",
            Step(
                "oak", "nft flush ruleset; sleep 1; nft list tables", says=["table inet clachan", "table arp clachan"]
            ),
            "Each member has a probe, which asks once a minute whether the others answer, and whether a canary of the "
            "host, which listens, does not. To see what it says, what mends is stopped first.",
            Step("oak", "systemctl stop clachan-isolation && systemctl kill --signal=STOP clachan-agent"),
            Step("oak", "nft flush set inet clachan peers && nft insert rule inet clachan input accept"),
            Step(
                "oak",
                "./clachan instance show home.lab.probe_m1",
                says=["reached +failing .*m2 is not reached by IPv6", "silent +failing .*m1 is reached by IPv4"],
                within=200,
            ),
            "The node's agent misses the keeper, starts it, and all is as it was.",
            Step("oak", "systemctl kill --signal=CONT clachan-agent"),
            Step("oak", "./clachan instance list", says=STARTED, within=400),
        ]

    def _break(self) -> Story:
        return [
            "## The machine loses its power\n\nEverything on it, members included, goes down in the middle of what "
            "it does, and comes back by itself: links and rules first, then the VMs, with the disks that they had.",
            Act(self._cut),
            Step("oak", "./clachan node list", says=[r"vm_[0-9a-f]{12}.*online.*home"]),
            Step("oak", "./clachan instance list", says=STARTED, within=400),
            "Nothing is left half done: what is on the machine is what its instances say.",
            Step("oak", "./clachan node doctor here", says=[r"^domain +home\.lab\.m1 +ok +started"], within=60),
        ]

    def _cut(self) -> None:
        machine = self.lab.machine("oak")
        before = self._seen()
        machine.cut()
        machine.start()
        if not until(lambda: all(self._seen().get(name, "") > then for name, then in before.items()), 400, pause=2):
            raise LabError(f"members {sorted(before)}: not heard of again, expected it within 400 s of the power cut")

    def _seen(self) -> dict[str, str]:
        """When the controller last heard of each member."""
        shell = ["sh", "-c", f"cd {CHECKOUT} && ./clachan node list --json"]
        said = self.lab.machine("oak").execute(shell, check=False).stdout
        return {node["name"]: node["seen"] for node in json.loads(said or "[]") if node["owner"] == "home"}

    def _end(self) -> Story:
        return [
            "## Smaller, and gone\n\nA cluster shrinks from its end; the others are not touched.",
            Step("oak", "./clachan request home.lab -p cluster_size=1 --timeout 300", says=[r"^ *state +started"]),
            Step("oak", "./clachan instance delete home.lab --yes", says=["absent|removed|gone"]),
            "Nothing of it is left on the machine.",
            Act(self._nothing_is_left),
            Step("oak", "./clachan node doctor here", says=[rf"^{kind} +- +ok +none" for kind in GONE]),
        ]

    def _nothing_is_left(self) -> None:
        machine = self.lab.machine("oak")
        domains = machine.execute(["virsh", "list", "--all", "--name"]).stdout.split()
        taps = re.findall(r"\bcv\d+", machine.execute(["ip", "-o", "link"]).stdout)
        if domains or taps:
            raise LabError(f"machine oak: domains {domains} and taps {taps} are left, expected none")


def _status(output: str) -> str:
    """What `up` says at its end."""
    return "...\n" + output[output.index("\nhome ") + 1 :]


def run(output: Path) -> None:
    wheels = wheelhouse()
    with tempfile.TemporaryDirectory(dir=testbed()) as scratch:
        disk = images.node_image(Path(scratch))
    layers = [checkout.environment_layer(wheels)]
    with Lab(f"v{os.getpid()}", layers, wheels, packages=VM_NODE_PACKAGES) as lab:
        lab.up(MACHINES, {"/srv/images": str(disk.parent)})
        checkout.put(lab.machine("oak"))
        output.write_text(tell(Clusters(lab).story(), lab.machine))


if __name__ == "__main__":
    sys.exit(script(DOCUMENT, Clusters(Lab()).story(), run))
