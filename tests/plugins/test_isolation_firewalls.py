"""Isolation beside the host's firewalls: a systemd machine with firewalld, libvirt's networks, the service nftables."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from testbed.host import until
from testbed.isolation_lab import Network, inside
from testbed.isolation_matrix import Probe, ask_all, build_world, guests, isolate, open_services, probes
from testbed.lab import Lab
from testbed.machine import Machine
from testbed.probe import obstacle

ROLE = Path(__file__).resolve().parents[2] / "roles" / "vm"
PACKAGES = ["dnsmasq-base", "firewalld", "iptables", "libvirt-clients", "libvirt-daemon-system", "nftables"]
HOME = "/var/lib/clachan"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.guest,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="this machine cannot: the tests do not run as root"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Machine, Network]]:
    if reason := obstacle():
        pytest.skip(f"this machine cannot: {reason}")
    with Lab(f"fw{os.getpid()}", packages=PACKAGES) as machines:
        (machine,) = machines.up(["one"])
        machine.execute(["systemctl", "stop", "ssh.service"])  # its port is the probes'
        with Network("fw", node=machine.namespace) as network:
            build_world(network)
            isolate(network, machine.root / HOME[1:])
            network.plug(*guests(network))
            open_services(network)
            yield machine, network


def rules(machine: Machine) -> str:
    """Our table without what its rules count themselves; empty when it is not there."""
    listed = machine.execute(["nft", "-s", "list", "table", "inet", "clachan"], check=False).stdout
    return re.sub(r"\tset (flows|calls|visits) \{.*?\n\t\}\n", "", listed, flags=re.DOTALL)


def leaks(network: Network) -> list[Probe]:
    return [one for one in ask_all(network, probes()) if not one.reach]


def write(machine: Machine, name: str, text: str) -> None:
    path = machine.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_firewalld_alone_never_opens_and_closes_what_is_allowed(lab: tuple[Machine, Network]) -> None:
    """Why its zone is needed: what is accepted in one table may be rejected in another."""
    _, network = lab
    failed = ask_all(network, probes())
    assert failed
    assert all(one.reach for one in failed)


def test_with_its_zone_all_holds(lab: tuple[Machine, Network]) -> None:
    machine, network = lab
    for name in ("zones/clachan.xml", "policies/clachan-links.xml"):
        write(machine, f"etc/firewalld/{name}", (ROLE / "files" / "firewalld" / name).read_text())
    machine.execute(["firewall-cmd", "--check-config"])
    machine.execute(["firewall-cmd", "--reload"])
    assert "clachan\n  interfaces: cv+" in machine.execute(["firewall-cmd", "--get-active-zones"]).stdout
    assert not (failed := ask_all(network, probes())), "\n".join(map(str, failed))


@pytest.mark.parametrize(
    "command",
    [
        "firewall-cmd --reload",
        "firewall-cmd --complete-reload",
        "systemctl restart firewalld",
        "virsh net-start default",
        "systemctl restart libvirtd",
        "virsh net-destroy default",
    ],
)
def test_what_the_host_does_changes_nothing(lab: tuple[Machine, Network], command: str) -> None:
    machine, network = lab
    before = rules(machine)
    machine.execute(command.split())
    assert rules(machine) == before
    assert not (failed := ask_all(network, probes())), "\n".join(map(str, failed))


def test_firewalld_in_panic_and_stopped(lab: tuple[Machine, Network]) -> None:
    machine, network = lab
    before = rules(machine)
    machine.execute(["firewall-cmd", "--panic-on"])
    assert not leaks(network)
    machine.execute(["firewall-cmd", "--panic-off"])
    machine.execute(["systemctl", "stop", "firewalld"])
    assert rules(machine) == before
    assert not (failed := ask_all(network, probes())), "\n".join(map(str, failed))


def test_the_service_nftables_flushes_all_but_ours(lab: tuple[Machine, Network]) -> None:
    machine, network = lab
    for source, target in (
        ("nftables-start.nft", f"{HOME[1:]}/node/nftables-start.nft"),
        ("nftables-stop.nft", f"{HOME[1:]}/node/nftables-stop.nft"),
        ("clachan.conf", "etc/systemd/system/nftables.service.d/clachan.conf"),
    ):
        text = (ROLE / "templates" / "nftables" / f"{source}.j2").read_text()
        write(machine, target, text.replace("{{ __vm_isolation }}", f"{HOME}/node"))
    machine.execute(["systemctl", "daemon-reload"])
    before = rules(machine)
    assert "flush ruleset" in (machine.root / "etc/nftables.conf").read_text()
    for verb in ("start", "reload", "restart", "stop"):
        machine.execute(["nft", "add", "table", "inet", "stranger"])
        machine.execute(["systemctl", verb, "nftables"])
        assert rules(machine) == before, verb
        assert "stranger" not in machine.execute(["nft", "list", "tables"]).stdout
    assert not (failed := ask_all(network, probes())), "\n".join(map(str, failed))


def test_after_the_machine_booted(lab: tuple[Machine, Network]) -> None:
    """Its network outlives it here, so what a boot does to it is done: no taps, no rules, no forwarding."""
    machine, network = lab
    machine.execute(["systemctl", "disable", "firewalld"])  # the two units conflict
    machine.execute(["systemctl", "enable", "nftables"])
    before = rules(machine)
    network.unplug("+".join(network.guests))
    machine.stop()
    for guest in network.guests.values():
        network.ip(network.node, f"link delete {guest.tap}")
    with inside(network.node):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        subprocess.run(["nft", "flush", "ruleset"], check=True)
    machine.start()
    said = machine.execute(["journalctl", "-u", "nftables"]).stdout
    assert until(lambda: rules(machine) == before, 10), said
    assert "cv0" not in network.ip(network.node, "link show")


def apply(machines: Lab, folder: Path, part: str = "firewall", **variables: object) -> str:
    """Run a part of the supply of the software vm, what it does about firewalls; the recap."""
    role = {"name": "clachan.platform.vm", "tasks_from": part}
    task = {"name": "Supply", "ansible.builtin.include_role": role}
    play = {"hosts": "two", "gather_facts": False, "tasks": [task], "vars": variables}
    (folder / "play.json").write_text(json.dumps([play]))
    reach = {"ansible_ssh_common_args": f"-F {machines.ssh_config}", "ansible_python_interpreter": "/usr/bin/python3"}
    reach["ansible_control_path"] = str(folder / "%%h")
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"two": reach}}}))
    places = {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_COLLECTIONS_PATH": str(ROLE.parents[1] / "collections")}
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "hosts.json", "play.json"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **places, "CLACHAN_HOME": HOME, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rpartition("PLAY RECAP")[2]


def test_the_supply_tells_the_firewalls_what_the_tests_above_wrote(tmp_path: Path) -> None:
    if reason := obstacle():
        pytest.skip(f"this machine cannot: {reason}")
    with Lab(f"fs{os.getpid()}", packages=PACKAGES) as machines:
        (machine,) = machines.up(["two"])
        machine.execute(["mkdir", "-p", f"{HOME}/node/isolation"])
        assert "changed=0" not in apply(machines, tmp_path)
        for name in ("zones/clachan.xml", "policies/clachan-links.xml"):
            written = machine.execute(["cat", f"/etc/firewalld/{name}"]).stdout
            assert written == (ROLE / "files" / "firewalld" / name).read_text()
        assert "interfaces: cv+" in machine.execute(["firewall-cmd", "--info-zone=clachan"]).stdout
        shown = machine.execute(["systemctl", "cat", "nftables"]).stdout
        assert f"ExecStart=/usr/sbin/nft -f {HOME}/node/nftables-start.nft" in shown
        assert "changed=0" in apply(machines, tmp_path)
        machine.execute(["systemctl", "stop", "firewalld"])
        assert "changed=0" in apply(machines, tmp_path), "also where it is off"


KEEPER = """#!/usr/bin/python3
import os, socket, time
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(
    f"READY=1\\nSTATUS={os.environ['CLACHAN_BUILD']}".encode(), os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""
"""What stands for the agent's Python: it says that it is ready, as the keeper does."""


def test_the_supply_has_the_keeper_run_in_the_build_that_is_supplied(tmp_path: Path) -> None:
    if reason := obstacle():
        pytest.skip(f"this machine cannot: {reason}")
    with Lab(f"fk{os.getpid()}", packages=PACKAGES) as machines:
        (machine,) = machines.up(["two"])
        write(machine, f"{HOME[1:]}/envs/agent/bin/python", KEEPER)
        machine.execute(["chmod", "755", f"{HOME}/envs/agent/bin/python"])

        def build() -> str:
            return machine.execute(["systemctl", "show", "-P", "StatusText", "clachan-isolation"]).stdout.strip()

        for digest in ("a" * 64, "b" * 64):
            assert "changed=0" not in apply(machines, tmp_path, "keeper", clachan_supply={"digest": digest})
            assert build() == digest
            assert "changed=0" in apply(machines, tmp_path, "keeper", clachan_supply={"digest": digest})
        machine.execute(["systemctl", "kill", "--signal=KILL", "clachan-isolation"])
        assert until(lambda: build() == "b" * 64, 10), "systemd starts it again"
        machine.execute(["systemctl", "disable", "--now", "clachan-isolation"])
        assert "changed=0" not in apply(machines, tmp_path, "keeper", clachan_supply={"digest": "b" * 64})
        assert machine.execute(["systemctl", "is-active", "clachan-isolation"]).stdout == "active\n"
