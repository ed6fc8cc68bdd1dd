"""The lab of a platform that `clachan up` made: from the order to started, a kernel, the idle platform's memory, and
the notebook `fitting` under its limit. What reading an array costs there is in `bench_arrays`.

The environments of server and kernels are made before the lab is ordered, so what they cost is a line of its own.
FITTING_MIB (512) is what the kernel of `fitting` may allocate; its array has four times that, so 3 GiB of disk below
/var/tmp are needed. Of kernels the median of ROUNDS.
"""

import ast
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from bench_idle import private_mib, processes
from clachan.cli import lab_notebook
from clachan.cli.lab_kernel import Kernel
from clachan.cli.lab_server import SOFTWARE, Lab
from clachan.contract.api import Declaration, SupplyDeclaration
from measured import BIN, ROOT, Platform, header, row, wait_until

FITTING_MIB = int(os.environ.get("FITTING_MIB", "512"))
ROUNDS = 5
NOTEBOOKS = ROOT / "roles" / "lab" / "files" / "notebooks"


@contextmanager
def brought_up() -> Iterator[Platform]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-lab-", dir="/var/tmp"))
    folder.chmod(0o755)
    platform = Platform(folder / "home")
    try:
        platform.run(BIN / "clachan", "up", "--no-demo", "--home", platform.home)
        yield platform
    finally:
        if platform.home.exists():
            platform.run(BIN / "clachan", "reset", "--yes", "--home", platform.home)
        shutil.rmtree(folder, ignore_errors=True)


def order(platform: Platform, memory_mib: int = 1024) -> float:
    """Seconds from the order until it is started, its promises passed."""
    parameters: dict[str, Any] = {
        "lab_lake_url": {"from": "home.lake", "key": "url"},
        "lab_lake_token": {"from": "home.lake", "key": "token"},
        "lab_memory_mib": memory_mib,
    }
    began = time.monotonic()
    with platform.client as client:
        done = client.request("home.lab", Declaration(software=SOFTWARE, parameters=parameters)).instance
    platform.wait({done.path: done.revision})
    return time.monotonic() - began


def supply(platform: Platform) -> float:
    began = time.monotonic()
    with platform.client as client:
        client.supply("here", SOFTWARE, SupplyDeclaration())
        wait_until("supply", 1200, lambda: client.supply_view("here", SOFTWARE).observed == "present", 0.2)
    return time.monotonic() - began


def lab_of(platform: Platform) -> Lab:
    with platform.client as client:
        found = client.instance("home.lab", reveal=True).published
    return Lab("home.lab", str(found["url"]), str(found["token"]))


def kernel(lab: Lab) -> float:
    """Seconds until one has answered."""
    began = time.monotonic()
    with Kernel(lab, "science") as started:
        started.wait()
        return time.monotonic() - began


def idle(platform: Platform) -> None:
    """Each of the platform's own, and all."""
    # the promise of the kernel has started one, and ended it
    wait_until("no kernel", 120, lambda: not lab_of(platform).ask("GET", "/api/kernels"), 1)
    time.sleep(20)
    found = sorted(((private_mib(one), one) for one in processes(platform.home)), key=lambda pair: -pair[0])
    for mib, process in found:
        row(f"  {_name(process)}", f"{mib:.0f} MiB")
    total = sum(mib for mib, _process in found)
    row("idle platform with lab, proportional", f"{total:.0f} MiB", "", "", _goal(total, 600, "MiB"))


def _name(process: psutil.Process) -> str:
    words = [pathlib.Path(word).name for word in process.cmdline()]
    return " ".join(words[1:4] if words[:1] == ["python"] else words[:3])[:40]


def _goal(found: float, limit: float, unit: str) -> str:
    return f"<= {limit:g} {unit} {'ok' if found <= limit else 'MISSED'}"


def fitting(lab: Lab, folder: pathlib.Path) -> None:
    book = lab_notebook.read(NOTEBOOKS / "fitting.ipynb")
    lab_notebook.run(book, lab, "science", folder / "fitting.ipynb", lambda _state, _message: None)
    found = ast.literal_eval(lab_notebook.last_result(book))
    what = f"fitting, {found['array_mib']:.0f} MiB: allocated"
    row(what, f"{found['allocated_mib']:.0f} MiB", "", "", _goal(found["allocated_mib"], FITTING_MIB, "MiB"))
    for name, mib in found["mib_per_second"].items():
        row(f"  {name}", f"{mib:.0f} MiB/s")


def main() -> None:
    with brought_up() as platform, tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = pathlib.Path(name)
        header("")
        row("its environments made and fetched", f"{supply(platform):.0f} s")
        took = order(platform)
        row("lab ordered to started", f"{took:.1f} s", "", "", _goal(took, 60, "s"))
        idle(platform)
        lab = lab_of(platform)
        ready = statistics.median(kernel(lab) for _ in range(ROUNDS))
        row("kernel ready", f"{ready:.1f} s", "", "", _goal(ready, 3, "s"))
        order(platform, FITTING_MIB)
        fitting(lab_of(platform), folder)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
