"""Services under supervisord, over its XML-RPC on a unix socket.

A slot has one file, conf.d/slot-SLOT.conf, with a program slot-SLOT_SERVICE for each service: no group around them,
as supervisord can only replace a group as a whole and a change of one service would restart all. The programs are
told apart from the platform's own by their prefix.
"""

import http.client
import re
import shlex
import socket
import threading
import time
import xmlrpc.client
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clachan.agent.layout import write_whole
from clachan.agent.supervisor import Key, SlotServices, Supervisor, SupervisorError, Unit, command
from clachan.contract.names import is_name

PREFIX = "slot-"
PROGRAM = re.compile(r"slot-(s[0-9]{3,4})_([a-z][a-z0-9_]{0,30})\Z")
RUNNING = {"STARTING", "RUNNING"}
STOPPED = {"STOPPED", "EXITED", "FATAL", "BACKOFF"}
ANSWER_SECONDS = 15
UP_SECONDS = 15
"""How long supervisord may take to answer after a boot, or when it was started again."""
CALLS = 100
"""In one message, so that a large node does not keep supervisord from reaping for long."""

PROGRAM_SECTION = """\
[program:{program}]
command={command}
directory=/
{user}autostart=true
autorestart=true
startsecs=1
startretries=20
stopwaitsecs={stop_seconds}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={log}
stdout_logfile_maxbytes=2MB
stdout_logfile_backups=3
"""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            fresh.settimeout(self.timeout)
            fresh.connect(self._path)
        except BaseException:
            fresh.close()
            raise
        self.sock = fresh


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        made = _Connection(self._path)
        self._connection = (host, made)  # the transport's own place for it, from where it is closed
        return made


class Supervisord(Supervisor):
    """The supervisord whose socket this is; conf.d is the folder beside it."""

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path
        self._folder = socket_path.parent / "conf.d"
        self._lock = threading.Lock()

    # -- remote procedures ----------------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any) -> Any:
        """One call on its own connection: supervisord ends idle ones, and threads share nothing then."""
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(str(self._socket))) as proxy:
                return getattr(proxy, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise SupervisorError(f"supervisord {self._socket}: {method}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException) as error:
            raise SupervisorError(f"supervisord {self._socket}: {error}, expected it to answer") from error

    def _calls(self, method: str, programs: Iterable[str], *more: Any) -> dict[str, str]:
        """The method for each program, many in one message; gives the faults by program."""
        programs = list(programs)
        faults = {}
        for start in range(0, len(programs), CALLS):
            some = programs[start : start + CALLS]
            calls = [{"methodName": f"supervisor.{method}", "params": [program, *more]} for program in some]
            for program, result in zip(some, self._call("system.multicall", calls), strict=True):
                if isinstance(result, dict) and "faultString" in result:
                    faults[program] = str(result["faultString"])
        return faults

    def _states(self) -> dict[str, tuple[str, int]]:
        """Program -> (state, pid) of all services of slots."""
        found = self._call("supervisor.getAllProcessInfo")
        return {one["name"]: (one["statename"], one["pid"]) for one in found if one["name"].startswith(PREFIX)}

    def pids(self) -> dict[Key, int]:
        found = {}
        for program, (state, pid) in self._states().items():
            match = PROGRAM.match(program)
            if match and pid and state in RUNNING:
                found[match.group(1), match.group(2)] = int(pid)
        return found

    # -- apply ----------------------------------------------------------------------------------------------------

    def apply(self, slots: Iterable[SlotServices]) -> None:
        with self._lock:
            self._wait_until_up()
            slots = list(slots)
            wanted = {_program(slot.slot, name): unit for slot in slots for name, unit in slot.units.items()}
            written = [slot for slot in slots if self._write(slot)]
            fresh = self._replace(slots) if written or self._out_of_step(slots, wanted) else set()
            self._start(wanted, fresh)

    def _wait_until_up(self) -> None:
        limit = time.monotonic() + UP_SECONDS
        while True:
            try:
                self._call("supervisor.getState")
                return
            except SupervisorError:
                if time.monotonic() > limit:
                    raise
            time.sleep(0.1)

    def _out_of_step(self, slots: list[SlotServices], wanted: dict[str, Unit]) -> bool:
        """Whether supervisord has not read what is in the files: the agent was killed after it wrote them."""
        ours = _prefixes(slots)
        return {program for program in self._states() if program.startswith(ours)} != set(wanted)

    def _write(self, slot: SlotServices) -> bool:
        path = self._folder / f"{PREFIX}{slot.slot}.conf"
        text = "\n".join(_section(slot, name) for name in sorted(slot.units))
        try:
            before = path.read_text()
        except FileNotFoundError:
            before = ""
        if before == text:
            return False
        if text:
            write_whole(path, text.encode())
        else:
            path.unlink()
        return True

    def _replace(self, slots: list[SlotServices]) -> set[str]:
        """Bring supervisord's programs of these slots to what their files say; gives those that are new."""
        ours = _prefixes(slots)
        [[added, changed, removed]] = self._call("supervisor.reloadConfig")
        added, changed, removed = ([p for p in some if p.startswith(ours)] for some in (added, changed, removed))
        self._stop([*changed, *removed])
        self._checked("removeProcessGroup", [*changed, *removed])
        self._checked("addProcessGroup", [*added, *changed])
        return {*added, *changed}

    def _start(self, wanted: dict[str, Unit], fresh: set[str]) -> None:
        old = [program for program, unit in wanted.items() if unit.restart and program not in fresh]
        self._stop(old)
        states = self._states()
        idle = [program for program in wanted if states.get(program, ("", 0))[0] not in RUNNING]
        faults = self._calls("startProcess", idle, False)
        # one that ends at once is the promises' matter; its supervisor tries again
        bad = {p: fault for p, fault in faults.items() if not fault.startswith(("ALREADY_STARTED", "SPAWN_ERROR"))}
        if bad:
            raise SupervisorError(f"supervisord {self._socket}: {bad}, expected them to start")

    def _stop(self, programs: list[str]) -> None:
        """Stop these and wait until they have ended: each gets its own time, then is killed by supervisord."""
        self._calls("stopProcess", programs, False)
        pause, limit = 0.01, time.monotonic() + 620
        while programs and time.monotonic() < limit:
            states = self._states()
            programs = [p for p in programs if states.get(p, ("STOPPED", 0))[0] not in STOPPED]
            if programs:
                time.sleep(pause)  # the call itself makes supervisord look for processes that ended
                pause = min(0.2, pause * 2)
        if programs:
            raise SupervisorError(f"supervisord {self._socket}: {programs} do not stop, expected them to")

    def _checked(self, method: str, programs: list[str]) -> None:
        if faults := self._calls(method, programs):
            raise SupervisorError(f"supervisord {self._socket}: {method}: {faults}")


def _prefixes(slots: Iterable[SlotServices]) -> tuple[str, ...]:
    """What the programs of these slots begin with."""
    return tuple(f"{PREFIX}{slot.slot}_" for slot in slots)


def _program(slot: str, service: str) -> str:
    if not is_name(service):
        raise SupervisorError(f"service {service!r} of {slot}, expected a contract name")
    return f"{PREFIX}{slot}_{service}"


def _section(slot: SlotServices, service: str) -> str:
    return PROGRAM_SECTION.format(
        program=_program(slot.slot, service),
        command=_value(shlex.join(command(slot.directory, service))),
        user=f"user={_value(slot.user)}\n" if slot.user else "",
        stop_seconds=slot.units[service].stop_seconds,
        log=_value(str(slot.directory / "log" / f"{service}.log")),
    )


def _value(text: str) -> str:
    """As supervisord reads it: % begins an expansion, ; after a space a comment."""
    if not text.isprintable() or " ;" in text:
        raise SupervisorError(f"value for supervisord: {text!r}, expected a path without ' ;' and control characters")
    return text.replace("%", "%%")
