"""`clachan reset`: remove all that `up` made. What is not a Clachan home is never touched."""

import contextlib
import grp
import json
import shutil
import subprocess
from pathlib import Path

from clachan.cli.errors import CommandError
from clachan.cli.platform_processes import slot_users
from clachan.cli.platform_stop import stop

SETTINGS = "settings.json"
CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Below it those of a hub's users, which hold nothing when nobody is left in them."""


def check(home: Path) -> bool:
    """Whether there is something to remove; raises CommandError for a directory that is no Clachan home."""
    if not home.exists() and not home.is_symlink():
        return False
    if home.is_symlink() or not home.is_dir():
        raise CommandError(f"home {home}: not a directory, expected a Clachan home")
    if not _is_home(home) and any(home.iterdir()):
        raise CommandError(f"home {home}: no {SETTINGS} of Clachan in it, expected a Clachan home; nothing was removed")
    return True


def _is_home(home: Path) -> bool:
    try:
        return bool(json.loads((home / SETTINGS).read_bytes())["clachan_home"] == 1)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove(home: Path) -> None:
    """Processes, units, users, files; the file that marks the home at last, so that a kill can be made good."""
    stop(home, forget=True)
    for disk in (home / "mounts").glob("*"):
        # a lab user's: what is in it goes with its file, and not by way of here
        subprocess.run(["umount", "--lazy", disk], capture_output=True, check=False)
    for user in slot_users(home):
        for group in CONTROL_GROUPS.glob(f"*/clachan/{user.pw_name}"):
            with contextlib.suppress(OSError):
                group.rmdir()
        _remove_account("user", user.pw_name)
        if any(group.gr_name == user.pw_name for group in grp.getgrall()):  # login.defs may keep it
            _remove_account("group", user.pw_name)
    for path in sorted(home.iterdir()):
        if path.name == SETTINGS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (home / SETTINGS).unlink(missing_ok=True)
    home.rmdir()


def _remove_account(kind: str, name: str) -> None:
    process = subprocess.run([f"{kind}del", name], capture_output=True, text=True, check=False)
    if process.returncode:
        raise CommandError(f"{kind} {name}: {process.stderr.strip()}, expected to be removed")
