"""1, 10 and 50 instances of a trivial service with one promise: first converge, one change, unchanged passes.

Both are asked for all instances before their node looks; the time runs from then until every service runs and every
promise has passed. Ours wait for a label until the node gets it, so that all are placed at one moment; our agent is a
daemon, SlapOS's node a program that is started for each pass. As root each instance of ours is a unix user of its own;
SlapOS runs all as one user.
"""

import pathlib
import shutil
import sys
import tempfile
import time

from clachan.contract.api import NodeChange
from measured import Platform, header, installed_platform, row
from slapos_peer import Slapos

COUNTS = [int(word) for word in sys.argv[1:]] or [1, 10, 50]
GOALS = {1: "", 10: "<= 0.33", 50: "<= 0.20"}
IDLE_SECONDS = 20


def ours(platform: Platform, count: int) -> dict[str, float]:
    label = {"round": f"r{count}"}
    wanted = platform.request(count, "one", label)
    with platform.client as client:
        began = time.monotonic()
        client.change_node("here", NodeChange(labels=label))
    platform.wait(wanted)
    first = time.monotonic() - began
    time.sleep(3)
    began = time.monotonic()
    platform.wait(platform.request(1, "two", label))
    change = time.monotonic() - began
    time.sleep(3)
    agent = platform.process("agent")
    before, children = sum(agent.cpu_times()), len(agent.children(recursive=True))
    time.sleep(IDLE_SECONDS)
    idle = sum(agent.cpu_times()) - before
    assert children == 0, "an unchanged pass started a process"
    platform.remove_all()
    return {"first": first, "change": change, "idle": idle / (IDLE_SECONDS / 2)}


def peer(count: int) -> dict[str, float]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-slapos-", dir="/var/tmp"))
    try:
        with Slapos(folder / "run", count) as slapos:
            slapos.request(count, "one")
            slapos.software()
            first, _ = slapos.converge()
            assert slapos.services() == count, f"services {slapos.services()}, expected {count}"
            idle = min(slapos.converge()[1] for _ in range(3))
            slapos.request(1, "two")
            change, _ = slapos.converge()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"first": first, "change": change, "idle": idle}


def main() -> None:
    header("SlapOS 1.26")
    with installed_platform() as platform:
        platform.supply()
        for count in COUNTS:
            us, them = ours(platform, count), peer(count)
            for key, text in (("first", "first converge"), ("change", "one change")):
                goal = GOALS.get(count, "") if key == "first" else ""
                ratio = us[key] / them[key]
                row(f"{count} instances: {text}", f"{us[key]:.2f} s", f"{them[key]:.2f} s", f"{ratio:.2f}", goal)
            goal = "<= 50 ms" if count == 50 else ""
            row(
                f"{count} instances: CPU of an unchanged pass",
                f"{us['idle'] * 1e3:.0f} ms",
                f"{them['idle'] * 1e3:.0f} ms",
                "",
                goal,
            )


if __name__ == "__main__":
    main()
