"""What is in a disk image of ours, read on the host: each file's kind, owner, mode and content."""

import hashlib
import os
import stat
import sys
from pathlib import Path

from testbed.host import HERE, run

START = 1048576


def listing(disk: Path, folder: Path) -> dict[str, str]:
    """Path -> what is there, of the first partition; read in a mount namespace of its own."""
    raw = folder / "listed.raw"
    run(["qemu-img", "convert", "-O", "raw", disk, raw])
    place = folder / "listed"
    place.mkdir(exist_ok=True)
    options = f"loop,ro,noload,offset={START},sizelimit={raw.stat().st_size - START}"
    script = 'mount -t ext4 -o "$1" "$2" "$3" && exec "$4" "$5" "$3"'
    words = [options, str(raw), str(place), sys.executable, __file__]
    try:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *words]
        said = run(command, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    finally:
        raw.unlink()
    return dict(line.split("\t", 1) for line in said.splitlines())


def describe(path: str) -> str:
    status = os.lstat(path)
    owner = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{owner} -> {os.readlink(path)}"
    if stat.S_ISREG(status.st_mode):
        return f"{owner} {status.st_size} {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"
    return owner


def main(root: str) -> None:
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            path = os.path.join(folder, name)
            sys.stdout.write(f"{os.path.relpath(path, root)}\t{describe(path)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
