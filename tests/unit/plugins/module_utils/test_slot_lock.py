# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Push and pull never work on one slot at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time

import pytest
from ansible_collections.clachan.platform.plugins.module_utils.slot_lock import LockError, lock, lock_path, unlock


@pytest.fixture
def run():
    """The main process of a run: lives until the test ends it."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def is_free(directory):
    with open(lock_path(directory), "a+b") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False


def becomes_free(directory, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_free(directory):
            return True
        time.sleep(0.02)
    return False


def test_the_lock_is_held_until_the_run_ends(slot, run):
    lock(slot.directory, "run 1", process=run.pid)
    assert not is_free(slot.directory)
    run.kill()
    run.wait()
    assert becomes_free(slot.directory)


def test_another_run_waits_and_is_told_who_holds_it(slot, run):
    lock(slot.directory, "run 1", process=run.pid)
    with pytest.raises(LockError) as caught:
        lock(slot.directory, "run 2", process=run.pid, seconds=0.3)
    assert str(caught.value) == "slot s000: locked for 0 s by run 1, expected it to be free"


def test_the_agents_lock_counts(slot, run):
    with open(lock_path(slot.directory), "a+b") as agents:
        fcntl.flock(agents, fcntl.LOCK_EX)
        with pytest.raises(LockError, match=r"by another run \(the node's agent\?\), expected it to be free$"):
            lock(slot.directory, "run 1", process=run.pid, seconds=0.3)
    lock(slot.directory, "run 1", process=run.pid, seconds=0.3)


def test_the_same_run_may_lock_twice(slot, run):
    lock(slot.directory, "run 1", process=run.pid)
    lock(slot.directory, "run 1", process=run.pid, seconds=0)
    assert not is_free(slot.directory)


def test_a_lease_ends_by_itself_or_when_told(slot):
    lock(slot.directory, "run 1", lease=0.2)
    assert becomes_free(slot.directory)
    lock(slot.directory, "run 1", lease=60)
    assert unlock(slot.directory, "run 2") is False
    assert not is_free(slot.directory)
    assert unlock(slot.directory, "run 1") is True
    assert becomes_free(slot.directory)
    assert unlock(slot.directory, "run 1") is False


def test_a_link_is_not_followed(slot, tmp_path):
    os.symlink(str(tmp_path / "elsewhere"), lock_path(slot.directory))
    with pytest.raises(LockError, match=r"^slot's lock .*s000.lock: .*, expected a file of the node's agent$"):
        lock(slot.directory, "run 1", lease=1)
    assert not (tmp_path / "elsewhere").exists()
