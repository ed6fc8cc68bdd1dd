"""A customer's own playbook on a VM: a real OpenSSH client and server, through `clachan instance connect`.

The VM is a network namespace on a routed link, with an sshd of its own; the machine that it runs on is another, with
the controller and the part of the agent that carries streams. Nothing of the VM is reached in any other way.
"""

import base64
import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import BIN, Finished, run
from .streaming import agent_part, running
from .test_controller_inventory import without_marks

pytestmark = pytest.mark.slow
SSHD = "/usr/sbin/sshd"
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
MESSAGE = b"a message that only the VM has"


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def enter(namespace: Path) -> None:
    """This thread, and all that it starts."""
    with namespace.open("rb") as file:
        if LIBC.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def two_machines() -> Iterator[Callable[[str, str], None]]:
    """Namespaces of a node and its VM; this thread is in the node's. Gives what links the VM: `link(name, address)`."""
    outside, node, vm = Path("/proc/self/ns/net"), f"ccn{os.getpid()}", f"ccv{os.getpid()}"
    with outside.open("rb") as former:
        for name in (node, vm):
            call("ip", "netns", "add", name)
        try:
            enter(Path("/run/netns") / node)
            call("ip", "link", "set", "lo", "up")

            def link(name: str, address: str) -> None:
                call("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", vm)
                call("ip", "address", "add", "169.254.1.1/32", "dev", name, "scope", "link")
                call("ip", "link", "set", name, "up")
                call("ip", "route", "add", f"{address}/32", "dev", name)
                inside = ("ip", "-n", vm)
                call(*inside, "link", "set", "lo", "up")
                call(*inside, "address", "add", f"{address}/32", "dev", "eth0")
                call(*inside, "link", "set", "eth0", "up")
                call(*inside, "route", "add", "169.254.1.1", "dev", "eth0")
                call(*inside, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")

            link.vm = vm  # type: ignore[attr-defined]
            yield link
        finally:
            LIBC.setns(former.fileno(), CLONE_NEWNET)
            for name in (node, vm):
                subprocess.run(["ip", "netns", "delete", name], check=False)


@dataclass
class Customer:
    """The platform with a VM of the tenant `lab`, and a member of that tenant with a key that the VM admits."""

    live: Any
    node: Any
    directory: Path
    collections: Path
    token: str
    host_key: str

    def ansible(self, *arguments: str, program: str = "ansible-playbook", **environment: str) -> Finished:
        inventory = self.directory / "lab.clachan.yml"
        inventory.write_text(json.dumps({"plugin": "clachan.platform.inventory"}))
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "CLACHAN_URL": self.live.url,
            "CLACHAN_CA": self.live.ca_file,
            "CLACHAN_TOKEN": self.token,
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_REMOTE_USER": "root",
            "ANSIBLE_PRIVATE_KEY_FILE": str(self.directory / "key"),
            "ANSIBLE_SSH_ARGS": "-F none -o ControlMaster=auto -o ControlPersist=5s",
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        }
        return run([str(BIN / program), "-i", str(inventory), *arguments], self.directory, variables | environment)

    def publish(self, key: str) -> None:
        self.node.started("lab.box", published={"host_key": key})


@pytest.fixture(scope="module")
def customer(tmp_path_factory: pytest.TempPathFactory, collections: Path) -> Iterator[Customer]:
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    if missing := [program for program in (SSHD, "ssh", "ip") if shutil.which(program) is None]:
        pytest.skip(f"this machine cannot: {' and '.join(missing)} missing")
    from live import running_controller

    directory = tmp_path_factory.mktemp("customer")
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(two_machines())
        live = stack.enter_context(running_controller(directory / "home", process=True))
        found = Customer(live, _node_with_vm(live, directory), directory, collections, "", "")
        found.token = live.as_user("mia", "member", ["lab"]).token
        slot = live.ok("GET", "/instances/lab.box")["slot"]
        link(f"cv{slot['index']}", slot["addresses"]["ipv4"])
        found.host_key = stack.enter_context(_sshd(directory, link.vm, slot["addresses"]["ipv4"]))  # type: ignore[attr-defined]
        found.publish(found.host_key)
        stack.enter_context(agent_part(live, found.node, directory / "agent"))
        yield found


def _node_with_vm(live: Any, directory: Path) -> Any:
    """A joined node, and the VM lab.box on it, which has joined as a node of the tenant."""
    from live import Caller, artifact, key_and_csr, role

    published = {"host_key": {"title": "SSH host key"}}
    files = role({}, {"makes_node": True, "needs_root": True, "published": published})
    live.register(artifact(directory, "acme.machines", {"box": files}))
    live.tenant("lab")
    node = live.join("here")
    live.supply("here", "acme.machines.box")
    live.request("lab.box", "acme.machines.box")
    given = node.ok("POST", "/nodes/self/join-tokens", {"instance": "lab.box", "generation": "one"})
    _, csr = key_and_csr(given["node"])
    Caller(live.url, live.ca_file).ok("POST", "/join", {"token": given["token"], "node": given["node"], "csr": csr})
    return node


@contextlib.contextmanager
def _sshd(directory: Path, namespace: str, address: str) -> Iterator[str]:
    """An SSH server at the address that admits `key`; gives its host key."""
    for name in ("host", "key", "other"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / name))
    config = directory / "sshd_config"
    config.write_text(
        f"ListenAddress {address}:22\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/key.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        "Subsystem sftp internal-sftp\n"
    )
    made = not Path("/run/sshd").exists()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    command = ("ip", "netns", "exec", namespace, SSHD, "-D", "-e", "-f", str(config))
    try:
        with running(*command, log=directory / "sshd.log"):
            for _ in range(100):
                if "listening" in (directory / "sshd.log").read_text():
                    break
                time.sleep(0.05)
            yield (directory / "host.pub").read_text().strip()
    finally:
        if made:
            with contextlib.suppress(OSError):
                Path("/run/sshd").rmdir()


PLAYBOOK = """
- hosts: members_lab_box
  gather_facts: false
  tasks:
    - ansible.builtin.ping:
    - ansible.builtin.command: ip -o -4 address show dev eth0
      register: shown
      changed_when: false
    - ansible.builtin.copy:
        content: "{{ message }}"
        dest: "{{ place }}"
        mode: "0600"
    - ansible.builtin.slurp:
        src: "{{ place }}"
      register: kept
    - ansible.builtin.debug:
        msg: "{{ shown.stdout }} {{ kept.content }}"
"""


def test_a_customers_own_playbook_runs_on_the_members_of_its_cluster(customer: Customer) -> None:
    playbook = customer.directory / "own.yml"
    playbook.write_text(PLAYBOOK)
    values = json.dumps({"message": MESSAGE.decode(), "place": str(customer.directory / "kept")})
    done = customer.ansible(str(playbook), "-e", values)
    assert done.status == 0, done.all + (customer.directory / "agent.log").read_text()
    address = customer.live.ok("GET", "/instances/lab.box")["slot"]["addresses"]["ipv4"]
    assert f" {address}/32 " in done.out, "it ran inside"
    assert base64.b64encode(MESSAGE).decode() in done.out
    events = customer.live.ok("GET", "/events?kind=connected")["items"]
    assert {(one["data"]["user"], one["path"], one["data"]["port"]) for one in events} == {("mia", "lab.box", 22)}
    assert customer.token not in done.all


def test_what_a_member_sees_of_its_vms(customer: Customer) -> None:
    listed = customer.ansible("--list", program="ansible-inventory")
    hosts = without_marks(json.loads(listed.out))
    (name,) = hosts["members_lab_box"]["hosts"]
    assert name.startswith("vm_")
    variables = hosts["_meta"]["hostvars"][name]
    assert variables["clachan_node"]["vm"] == variables["ansible_host"] == "lab.box"
    assert "here" not in hosts["_meta"]["hostvars"], "a machine of the operator"
    customer.live.tenant("foreign")
    other = customer.live.as_user("max", "member", ["foreign"]).token
    assert "members_lab_box" not in customer.ansible("--list", program="ansible-inventory", CLACHAN_TOKEN=other).out


def test_a_vm_with_another_host_key_is_not_spoken_to(customer: Customer) -> None:
    customer.publish((customer.directory / "other.pub").read_text().strip())
    alone = {"ANSIBLE_SSH_ARGS": "-F none -o ControlMaster=no"}
    try:
        done = customer.ansible("members_lab_box", "-m", "ansible.builtin.ping", program="ansible", **alone)
        assert "Host key verification failed" in done.all
        customer.publish("no key")
        done = customer.ansible("members_lab_box", "-m", "ansible.builtin.ping", program="ansible", **alone)
        assert "SUCCESS" not in done.all
        assert "host key of lab.box: none is published, expected a VM whose node made one" in done.all
    finally:
        customer.publish(customer.host_key)


def test_a_port_of_the_vm_that_nobody_serves(customer: Customer) -> None:
    environment = {"CLACHAN_URL": customer.live.url, "CLACHAN_CA": customer.live.ca_file}
    environment |= {"CLACHAN_TOKEN": customer.token, "PATH": os.environ["PATH"]}
    command = [str(BIN / "clachan"), "instance", "connect", "lab.box", "--port", "81"]
    done = run(command, customer.directory, environment)
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        "clachan: instance lab.box: port 81 refuses connections, expected a service that listens there\n"
    )
