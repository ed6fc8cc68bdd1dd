"""A platform made as a newcomer makes it: a fresh clone in a new folder, `./clachan up`, nothing else.

Once as root and once as an ordinary user that exists only for these tests.
"""

import os
import pathlib
import pwd
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CANNOT = "this machine cannot: "


@dataclass
class Newcomer:
    """Somebody at a fresh clone. `run` gives the finished process with its output and its wall seconds."""

    user: str
    folder: pathlib.Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def clone(self) -> pathlib.Path:
        return self.folder / "clone"

    @property
    def home(self) -> pathlib.Path:
        return self.folder / "home"

    def start(self, *command: str, **more: object) -> "subprocess.Popen[str]":
        entry = pwd.getpwnam(self.user)
        variables = {
            "HOME": str(self.folder),
            "USER": self.user,
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "CLACHAN_HOME": str(self.home),
            **{key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "REQUESTS_"))},
            **self.variables,
        }
        who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        # The machine's own pip configuration (a mirror, a certificate) stands where this user may not read it.
        return subprocess.Popen(
            command,
            cwd=self.clone if self.clone.exists() else self.folder,
            env=variables,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **who,
            **more,
        )

    def run(self, *command: str, expect: int | None = 0, seconds: float = 900) -> "Finished":
        started = time.monotonic()
        process = self.start(*command)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            raise AssertionError(f"{command} did not end within {seconds} s:\n{output[-4000:]}") from None
        finished = Finished(process.returncode, output, time.monotonic() - started)
        if expect is not None:
            assert finished.status == expect, f"{command}: exit status {finished.status}\n{output[-6000:]}"
        return finished

    def clachan(self, *arguments: str, expect: int | None = 0, seconds: float = 900) -> "Finished":
        return self.run("./clachan", *arguments, expect=expect, seconds=seconds)

    def ansible(self, program: str, *arguments: str, expect: int | None = 0) -> "Finished":
        return self.run(f".venv/bin/{program}", *arguments, expect=expect)

    def processes(self) -> list[str]:
        """Command lines of what runs from this platform's folder."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_text().replace("\0", " ")
                    where = os.readlink(entry / "cwd")
                except OSError:
                    continue
                if str(self.home) in line or where.startswith(str(self.home)):
                    found.append(line)
        return found


@dataclass(frozen=True)
class Finished:
    status: int
    output: str
    seconds: float

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.output)


def _clone(newcomer: Newcomer) -> None:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(newcomer.clone)], check=True)
    entry = pwd.getpwnam(newcomer.user)
    subprocess.run(["chown", "-R", f"{entry.pw_uid}:{entry.pw_gid}", str(newcomer.folder)], check=True)


@pytest.fixture(scope="module", params=["root", "user"])
def newcomer(request: pytest.FixtureRequest) -> Iterator[Newcomer]:
    if os.geteuid() != 0:
        pytest.skip(CANNOT + "make another user, as this is not root")
    folder = pathlib.Path("/var/tmp") / f"clachan-acceptance-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    user = "root"
    if request.param == "user":
        user = f"newcomer{secrets.token_hex(3)}"
        subprocess.run(["useradd", "-M", "-d", str(folder), "-s", "/bin/sh", user], check=True)
    somebody = Newcomer(user, folder)
    _clone(somebody)
    try:
        yield somebody
    finally:
        if somebody.home.exists():
            somebody.clachan("reset", "--yes", expect=None)
        if user != "root":
            subprocess.run(["userdel", user], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
