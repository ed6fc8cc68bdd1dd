"""The idle platform after `clachan up`: resident memory by process, size on disk, packages."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import psutil
from measured import BIN, ROOT, Platform, header, row

GOAL_MIB = 400


def processes(home: pathlib.Path) -> list[psutil.Process]:
    supervisord = psutil.Process(int((home / "supervisor" / "supervisord.pid").read_text()))
    return [supervisord, *supervisord.children(recursive=True)]


def name_of(process: psutil.Process) -> str:
    return " ".join(pathlib.Path(word).name for word in process.cmdline()[:4])[:44]


def private_mib(process: psutil.Process) -> float:
    """Proportional set size: pages that processes share count once in the total."""
    return process.memory_full_info().pss / 2**20


def main() -> None:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    platform = Platform(folder / "home")
    try:
        platform.run(BIN / "clachan", "up", "--home", platform.home)
        time.sleep(20)
        header("")
        resident = proportional = 0.0
        for process in processes(platform.home):
            rss = process.memory_info().rss / 2**20
            resident, proportional = resident + rss, proportional + private_mib(process)
            row(name_of(process), f"{rss:.0f} MiB")
        row("resident memory, all processes", f"{resident:.0f} MiB", "", "", f"<= {GOAL_MIB} MiB")
        row("of it proportional (shared pages once)", f"{proportional:.0f} MiB")
        size = subprocess.run(["du", "-sm", platform.home], check=True, capture_output=True, text=True).stdout
        row("size on disk", f"{size.split()[0]} MiB")
        for environment in sorted((platform.home / "envs").iterdir()):
            if environment.is_dir() and not environment.is_symlink():
                count = len(list(environment.glob("lib/python3*/site-packages/*.dist-info")))
                row(f"packages in the environment {environment.name}", str(count))
    finally:
        if platform.home.exists():
            platform.run(BIN / "clachan", "reset", "--yes", "--home", platform.home)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
