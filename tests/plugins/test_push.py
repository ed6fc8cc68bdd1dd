"""The playbook converge, by push on this machine: it takes the slots' locks."""

import fcntl
import subprocess

from .conftest import Lab


def test_a_push_locks_the_slot_and_leaves_nothing_behind(lab: Lab) -> None:
    lab.add("home.one")
    done = lab.push()
    assert done.status == 0, done.all
    assert "TASK [Lock the slot]" in done.out
    with (lab.directory / "slots/s000.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "p.register(int(a),1)" not in processes or str(lab.directory) not in processes


def test_a_second_push_on_a_locked_slot_is_told(lab: Lab) -> None:
    lab.add("home.one")
    lab.push()
    playbook = lab.directory / "lock.yml"
    playbook.write_text(
        "- hosts: instances\n  gather_facts: false\n  tasks:\n    - name: Lock\n      clachan.platform.slot_lock:\n"
        "    - name: Lock again\n      clachan.platform.slot_lock:\n"
    )
    assert lab.ansible(str(playbook)).status == 0
