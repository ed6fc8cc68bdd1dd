"""From an order to a VM that has joined as a node, beside bare QEMU with the same image until its SSH banner.

As root. `bench_join.py one`, `three` runs one part; the second is a cluster of three members. Both are software
emulation where KVM does not work. Bare QEMU has the same processor model and memory, a link and a seed of the same
form; ours has besides it the order, the role, and the agent in the guest, which joins and reports.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measured import ROOT, header, row

sys.path.insert(0, str(ROOT / "tests"))
from testbed import guest, images
from testbed.host import locked, testbed
from testbed.vm_machine import VmMachine, obstacle, vm_machine

MEMORY_MIB = 512
SECONDS = 1200


def bare(folder: pathlib.Path, disk: pathlib.Path) -> float:
    """Seconds from QEMU's start until sshd's banner."""
    with guest.Guest(folder, disk, memory=MEMORY_MIB) as machine:
        return machine.wait_banner(SECONDS)


def started(oak: VmMachine, path: str, order: Callable[[], None]) -> float:
    """Seconds from an order until all of it is as wanted; then it is removed."""
    began = time.monotonic()
    order()  # and wait, as a user does
    took = time.monotonic() - began
    oak.remove(path)
    oak.until(f"{path} gone", lambda: oak.instance(path) is None, SECONDS)
    return took


@contextmanager
def node(disk: pathlib.Path) -> Iterator[VmMachine]:
    with vm_machine("bench", {"/srv/images": str(disk.parent)}) as oak:
        oak.take("node", f"/srv/images/{disk.name}")
        # the first one has to find out whether KVM works, once after a boot of the node
        oak.order("home.first")
        oak.until("home.first", lambda: oak.whole("home.first"), SECONDS)
        oak.remove("home.first")
        oak.until("home.first gone", lambda: oak.instance("home.first") is None, SECONDS)
        yield oak


def main() -> None:
    problem = images.obstacle() or guest.obstacle() or obstacle()
    if problem:
        print(f"this machine cannot: {problem}")
        return
    parts = sys.argv[1:] or ["one", "three"]
    header("bare QEMU")
    with tempfile.TemporaryDirectory(dir=testbed()) as scratch, locked(testbed() / "guest.lock"):
        folder = pathlib.Path(scratch)
        disk = images.node_image(folder / "image")
        peer = bare(folder / "bare", disk)
        with node(disk) as oak:
            vm = {"vm_image": oak.images["node"], "vm_memory_mib": MEMORY_MIB, "vm_accelerator": "qemu"}
            cluster = {"cluster_size": 3, "cluster_image": oak.images["node"]}
            if "one" in parts:
                ours = started(oak, "home.one", lambda: oak.order("home.one", wait=SECONDS, **vm))
                row("one VM, ordered to joined", f"{ours:.1f} s", f"{peer:.1f} s", f"{ours / peer:.2f}", "<= 1.5")
            if "three" in parts:
                ours = started(oak, "home.lab", lambda: oak.order("home.lab", "cluster", wait=SECONDS, **cluster))
                row("a cluster of three, ordered to started", f"{ours:.1f} s", f"{peer:.1f} s", f"{ours / peer:.2f}")


if __name__ == "__main__":
    main()
