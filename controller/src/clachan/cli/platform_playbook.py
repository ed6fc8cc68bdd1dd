"""Running a playbook of the platform collection on this machine, one at a time in a home."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from clachan.cli.errors import INTERRUPTED, CommandError
from clachan.cli.programs import find_program

LOCK_SECONDS = 900
END_SECONDS = 30


@contextmanager
def lock(home: Path, make: bool = False) -> Iterator[None]:
    """Hold the home, or wait until whoever holds it has ended; a home that is not there needs no holding.

    The lock is on the directory itself, so it leaves no file. A playbook inherits it: when a command is killed, the
    next one waits for the playbook that it left behind.
    """
    if make:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not home.is_dir():
        yield
        return
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _acquire(descriptor, home)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)
        if make:
            with suppress(OSError):
                home.rmdir()  # only when nothing came into it


def _acquire(descriptor: int, home: Path) -> None:
    limit, said = time.monotonic() + LOCK_SECONDS, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > limit:
                raise CommandError(f"home {home}: held by another command for {LOCK_SECONDS} s") from None
        if not said:
            print(f"clachan: another command works in {home}; waiting for its end", file=sys.stderr, flush=True)
            said = True
        time.sleep(0.2)


def run(
    home: Path,
    playbook: str,
    *arguments: str,
    inventory: str | None = None,
    environment: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> int:
    """Run clachan.platform.PLAYBOOK, its output on ours; answers its exit status. Ctrl-C ends both.

    `arguments`: further ones for ansible-playbook; `inventory`: instead of the platform's own; `environment`: further
    variables, by which a playbook gets texts that are no templates; `quiet`: its output on standard error.
    """
    program = _program(home)
    with _scratch(home) as scratch:
        command = [program, "-i", inventory or _inventory(), f"clachan.platform.{playbook}", *arguments]
        # close_fds: the lock's descriptor must pass on to Ansible, and ends there
        variables = _environment(home, scratch) | dict(environment or {})
        output = sys.stderr if quiet else None
        process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=output, close_fds=False)
        try:
            return process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise CommandError("interrupted; the same command goes on from there", INTERRUPTED) from None


def _scratch(home: Path) -> "tempfile.TemporaryDirectory[str]":
    """Ansible's own folder; in the home once there is one, where the next command removes what a kill left."""
    if not (home / "settings.json").exists():
        return tempfile.TemporaryDirectory(prefix="clachan-ansible-")
    for left in home.glob(".ansible-*"):
        shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=".ansible-", dir=home)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The terminal has sent Ansible its own Ctrl-C; give it time to end its tasks."""
    try:
        process.wait(END_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _program(home: Path) -> str:
    installed = home / "envs" / "agent" / "bin" / "ansible-playbook"
    beside = Path(sys.executable).with_name("ansible-playbook")
    return str(installed) if installed.is_file() and not beside.is_file() else find_program("ansible-playbook")


def checkout() -> Path | None:
    """The clone of the repository that this command belongs to, if it does."""
    places = [Path(sys.prefix).parent, *Path(__file__).resolve().parents[4:5]]
    if given := os.environ.get("CLACHAN_CHECKOUT"):
        places.insert(0, Path(given))
    return next((place for place in places if (place / "galaxy.yml").is_file()), None)


def _inventory() -> str:
    clone = checkout()
    if clone and (clone / "inventories" / "standalone").is_dir():
        return str(clone / "inventories" / "standalone")
    return "localhost,"


def _environment(home: Path, scratch: str) -> dict[str, str]:
    own = Path(scratch) / "ansible.cfg"  # the user's settings are for the user's playbooks
    own.write_text("[defaults]\n")
    variables = {
        "ANSIBLE_CONFIG": str(own),
        "ANSIBLE_HOME": scratch,
        "ANSIBLE_STDOUT_CALLBACK": "clachan.platform.progress",
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "CLACHAN_HOME": str(home),
    }
    clone = checkout()
    if clone:
        variables["ANSIBLE_COLLECTIONS_PATH"] = str(clone / "collections")
    elif (home / "platform" / "current").is_dir():
        variables["ANSIBLE_COLLECTIONS_PATH"] = str(home / "platform" / "current")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "CLACHAN_"))}
    if "ANSIBLE_COLLECTIONS_PATH" in os.environ:
        variables.setdefault("ANSIBLE_COLLECTIONS_PATH", os.environ["ANSIBLE_COLLECTIONS_PATH"])
    return kept | variables
