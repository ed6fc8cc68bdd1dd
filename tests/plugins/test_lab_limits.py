"""What users of a hub may take, held by control groups 2: in a guest, whose kernel and systemd are Debian's own.

The machine that the tests run on may have version 1, with which the tests of the hub are then run.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from testbed import guest, host, images  # noqa: E402
from testbed.guest import Guest  # noqa: E402

pytestmark = [pytest.mark.heavy, pytest.mark.guest, pytest.mark.root, pytest.mark.timeout(900)]
MODULES = "ansible_collections/clachan/platform/plugins/module_utils"
USER, UID = "tried", 4009
GROUP = f"/sys/fs/cgroup/clachan/{USER}"
DECLARE = """
import json, sys
from ansible_collections.clachan.platform.plugins.module_utils.lab_limits import Group
group = Group(sys.argv[1], int(sys.argv[2]))
held = getattr(group, sys.argv[3])(*map(int, sys.argv[4:]))
print(json.dumps([held, group.changed]))
"""
BUSY = "import time; end = time.time() + 3\nwhile time.time() < end: pass\nprint(time.process_time())"


@pytest.fixture(scope="module")
def machine() -> Iterator[Guest]:
    for reason in (images.obstacle(), guest.obstacle()):
        if reason:
            pytest.skip(f"this machine cannot: {reason}")
    folder = host.testbed() / f"limits-test-{os.getpid()}"
    files = [{"path": "/srv/declare.py", "content": DECLARE}]
    for name in ("lab_limits.py", "lab_disk.py"):
        text = (ROOT / "plugins/module_utils" / name).read_text()
        files.append({"path": f"/srv/{MODULES}/{name}", "content": text})
    try:
        disk = images.node_image(folder / "image")
        data = {"write_files": files}
        with host.locked(host.testbed() / "guest.lock"), Guest(folder / "guest", disk, user_data=data) as machine:
            machine.wait_banner()
            machine.ssh(f"useradd --uid {UID} {USER}")
            yield machine
    finally:
        host.run(["rm", "-rf", folder])


def declare(machine: Guest, *words: object) -> tuple[dict[str, str], bool]:
    said = machine.ssh(f"cd /srv && PYTHONPATH=/srv python3 declare.py {USER} {UID} {' '.join(map(str, words))}")
    held, changed = json.loads(said)
    return held, changed


def inside(command: str) -> str:
    """As a server that a launcher in the group starts."""
    return f"sh -c 'echo $$ > {GROUP}/cgroup.procs; exec setpriv --reuid {UID} --clear-groups {command}'"


def test_limits_hold_with_version_2(machine: Guest) -> None:
    assert "memory" in machine.ssh("cat /sys/fs/cgroup/cgroup.controllers").split()
    machine.ssh(f"setpriv --reuid {UID} --clear-groups sleep 600 >/dev/null 2>&1 & echo $! > /run/sleeper")
    held, changed = declare(machine, "present", 64, 500, 16)
    assert (held, changed) == (dict.fromkeys(("cpu", "memory", "pids"), f"{GROUP}/cgroup.procs"), True)
    assert machine.ssh("cat /proc/$(cat /run/sleeper)/cgroup") == f"0::/clachan/{USER}\n"
    settings = machine.ssh(f"cd {GROUP} && cat memory.max memory.swap.max cpu.max pids.max").splitlines()
    assert settings == [str(64 << 20), "0", "50000 100000", "16"]
    assert declare(machine, "present", 64, 500, 16)[1] is False

    assert machine.ssh(inside('python3 -c "print(len(bytearray(20 << 20)))"')) == f"{20 << 20}\n"
    assert machine.ssh(inside('python3 -c "bytearray(200 << 20)"') + "; echo $?").split()[-1] == "137"
    forks = inside('sh -c "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do sleep 1 & done; wait"')
    assert "Cannot fork" in machine.ssh(f"{forks} 2>&1; true")
    assert float(machine.ssh(inside(f'python3 -c "{BUSY}"'))) < 2.2


def test_systemd_does_not_take_them_away(machine: Guest) -> None:
    """It turns off what no unit of its own needs, unless others do."""
    declare(machine, "present", 96, 500, 16)
    machine.ssh("systemctl daemon-reload; systemd-run --wait --quiet -p MemoryMax=50M true; systemctl daemon-reexec")
    assert machine.ssh(f"cat {GROUP}/memory.max {GROUP}/pids.max").split() == [str(96 << 20), "16"]


def test_gone_with_all_that_runs(machine: Guest) -> None:
    declare(machine, "present", 64, 500, 16)
    machine.ssh(f"setpriv --reuid {UID} --clear-groups sleep 600 >/dev/null 2>&1 & true")
    declare(machine, "present", 64, 500, 16)
    assert declare(machine, "absent")[1] is True
    assert machine.ssh(f"test -e {GROUP}; echo $?; pgrep -u {USER}; true").split() == ["1"]
    assert declare(machine, "absent")[1] is False
