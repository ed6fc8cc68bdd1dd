"""The testbed itself: machines boot, reach each other, lose power, and leave nothing behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import cgroups, network
from testbed.base import debian_sources
from testbed.host import LabError, Process, spawn
from testbed.index import normal
from testbed.lab import Lab, layer, main
from testbed.machine import Machine
from testbed.probe import obstacle

FETCH = "import os, urllib.request as r; print(r.urlopen(os.environ['PIP_INDEX_URL'] + '/house-sample/').read())"


def test_apt_sources_of_other_vendors_and_releases_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(
        "Types: deb\n# why\nURIs: http://deb.example/debian\nSuites: bookworm bookworm-updates bookworm-backports\n\n"
        "Types: deb\nURIs: http://deb.example/debian\nSuites: trixie\n\n"
        "Types: deb\nURIs: http://off.example/debian\nSuites: bookworm\nEnabled: no\n"
    )
    (tmp_path / "sources.list.d/vendor.list").write_text("deb http://vendor.example/apt sdk-bookworm main\n")
    (tmp_path / "sources.list").write_text(
        "# deb http://no.example bookworm main\n"
        "deb [signed-by=/k.gpg arch=amd64] http://deb.example/security bookworm-security main\n"
        "deb-src http://deb.example/debian bookworm main\n"
    )
    assert debian_sources(tmp_path) == {
        "sources": "Types: deb\nURIs: http://deb.example/debian\nSuites: bookworm bookworm-updates\n",
        "list": "deb [signed-by=/k.gpg arch=amd64] http://deb.example/security bookworm-security main\n",
    }


def test_a_host_without_debian_12_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(LabError) as told:
        debian_sources(tmp_path)
    assert str(told.value) == f"apt sources in {tmp_path}: none of bookworm, expected those of Debian 12"


def test_a_process_is_known_by_number_and_start_time(tmp_path: Path) -> None:
    process = spawn(["sleep", "60"], tmp_path / "log")
    stranger = Process(process.pid, process.started + 1)
    try:
        stranger.signal(9)
        assert process.alive
        assert not stranger.alive
    finally:
        process.signal(15)
    assert process.wait(5)


def test_names_of_labs_are_checked() -> None:
    with pytest.raises(LabError, match=r"^lab 'A B', expected \[a-z\]"):
        Lab("A B")


def test_projects_are_found_by_their_normal_name() -> None:
    assert normal("Zope.Interface_x") == "zope-interface-x"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    reason = obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    with Lab(f"t{os.getpid()}") as lab:
        lab.up(["one", "two"])
        yield lab


@pytest.fixture
def one(lab: Lab) -> Iterator[Machine]:
    yield lab.machine("one")
    machine = lab.machine("one")
    if not machine.running:
        machine.start()


machines = [pytest.mark.heavy, pytest.mark.root, pytest.mark.xdist_group("testbed")]


class TestMachines:
    pytestmark = machines

    def test_systemd_runs_and_nothing_failed(self, one: Machine) -> None:
        assert one.execute(["systemctl", "is-system-running"]).stdout == "running\n"
        assert one.execute(["hostname"]).stdout == "one\n"

    def test_machines_reach_each_other_by_name_and_nothing_else(self, one: Machine) -> None:
        connect = "import socket; print(socket.create_connection(('two', 22), 5).recv(4).decode())"
        assert one.execute(["python3", "-c", connect]).stdout == "SSH-\n"
        outside = "import socket; socket.create_connection(('9.9.9.9', 53), 1)"
        assert one.execute(["python3", "-c", outside], check=False).returncode != 0

    def test_ssh_by_key(self, lab: Lab) -> None:
        said = subprocess.run(
            ["ssh", "-F", lab.ssh_config, "two", "hostname"], capture_output=True, text=True, check=True
        )
        assert said.stdout == "two\n"

    def test_a_failing_command_says_what_and_where(self, one: Machine) -> None:
        with pytest.raises(LabError) as told:
            one.execute(["sh", "-c", "echo no >&2; exit 3"])
        assert str(told.value) == "machine one: sh -c echo no >&2; exit 3: exit 3, expected 0: no"

    def test_the_disk_outlives_a_reboot(self, one: Machine) -> None:
        one.execute(["sh", "-c", "echo kept > /var/kept; echo gone > /run/gone"])
        identities = ["cat", "/etc/machine-id", "/proc/sys/kernel/random/boot_id"]
        machine, boot = one.execute(identities).stdout.split()
        one.reboot()
        assert one.execute(["cat", "/var/kept"]).stdout == "kept\n"
        assert one.execute(["test", "-e", "/run/gone"], check=False).returncode == 1
        after, other_boot = one.execute(identities).stdout.split()
        assert after == machine
        assert other_boot != boot

    def test_a_power_cut_gives_nobody_time(self, one: Machine) -> None:
        saying = "trap 'echo ended in order > /var/word' TERM; echo begun > /var/word; sleep 60 & wait"
        one.execute(["systemd-run", "-q", "sh", "-c", saying])
        one.execute(["sh", "-c", "for i in $(seq 50); do [ -s /var/word ] && exit; sleep 0.1; done; exit 1"])
        one.cut()
        assert not one.running
        with pytest.raises(LabError, match=r"^machine one: off, expected it to run$"):
            one.execute(["true"])
        one.start()
        assert one.execute(["cat", "/var/word"]).stdout == "begun\n"

    def test_limits_of_units_bite(self, one: Machine) -> None:
        if not cgroups.legacy():
            pytest.skip("this machine cannot: limits were only tried with cgroup version 1")
        greedy = ["systemd-run", "-q", "--wait", "-p", "MemoryMax=20M", "-p", "MemorySwapMax=0"]
        done = one.execute([*greedy, "python3", "-c", "bytearray(200 << 20)"], check=False)
        assert done.returncode != 0

    def test_a_pulled_cable(self, lab: Lab, one: Machine) -> None:
        connect = "import socket; socket.create_connection(('two', 22), 1)"
        network.plug(lab.namespace, "two", connected=False)
        assert one.execute(["python3", "-c", connect], check=False).returncode != 0
        network.plug(lab.namespace, "two", connected=True)
        end = time.monotonic() + 20
        while one.execute(["python3", "-c", connect], check=False).returncode:
            assert time.monotonic() < end

    def test_up_again_changes_nothing(self, lab: Lab) -> None:
        before = lab.machines()
        lab.up(["one", "two"])
        assert lab.machines() == before


class TestLab:
    pytestmark = machines

    def test_layers_binds_wheels_and_a_clean_end(self, lab: Lab, tmp_path: Path) -> None:
        del lab  # it says whether this host can
        (tmp_path / "house_sample-1.0-py3-none-any.whl").write_bytes(b"wheel")
        made = layer(
            f"test{os.getpid()}-x", lambda machine: machine.execute(["sh", "-c", "echo layer > /opt/made"]) and None
        )
        try:
            with Lab(f"w{os.getpid()}", [made], tmp_path) as other:
                (machine,) = other.up(["solo"], {"/srv/shown": str(tmp_path)})
                assert machine.execute(["cat", "/opt/made"]).stdout == "layer\n"
                assert machine.execute(["ls", "/srv/shown"]).stdout == "house_sample-1.0-py3-none-any.whl\n"
                assert machine.execute(["touch", "/srv/shown/x"], check=False).returncode != 0
                assert "house_sample-1.0" in machine.execute(["python3", "-c", FETCH]).stdout
                folder, namespace = other.folder, other.namespace
            assert not folder.exists()
            assert not list(network.NAMESPACES.glob(f"{namespace}*"))
            assert not list(Path("/sys/fs/cgroup").glob(f"*/{namespace}*"))
            assert str(folder) not in Path("/proc/mounts").read_text()
            assert not machine.running
        finally:
            subprocess.run(["rm", "-rf", made, *made.parent.glob(f"layer-test{os.getpid()}*")], check=True)

    def test_the_command_tells_errors_in_one_line(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        name = lab.namespace.removeprefix("lab-")
        assert main(["--lab", name, "start", "one"]) == 1
        assert capsys.readouterr().err == "machine one: running, expected it off\n"
        assert main(["--lab", name, "cut", "three"]) == 1
        assert capsys.readouterr().err == "machine three: not in this lab, expected one of: one, two\n"
        assert main(["--lab", name, "list"]) == 0
        assert capsys.readouterr().out == "one 10.99.1.11 running\ntwo 10.99.1.12 running\n"

    def test_exec_as_a_command(self, lab: Lab) -> None:
        tool = Path(__file__).resolve().parents[1] / "testbed/lab.py"
        name = lab.namespace.removeprefix("lab-")
        done = subprocess.run(
            [sys.executable, tool, "--lab", name, "exec", "two", "hostname"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "two\n")
