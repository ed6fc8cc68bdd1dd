"""The console and the screen of a VM: the real command, controller and agent's part, and unix sockets in the slot where
QEMU has its own. tests/plugins/test_vm_guest.py has a real guest."""

import os
import pty
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from clachan.agent.layout import AgentError, Layout
from clachan.agent.link import Answers, Link, keep_doing
from clachan.agent.planning import hosts_of
from clachan.agent.settings import NodeConfig
from clachan.agent.streams import Carrier, connect
from live import Caller, Live, artifact, node_fact, role, running_controller

from .conftest import wait_for
from .test_streams import host

pytestmark = pytest.mark.slow
COMMAND = str(Path(sys.executable).with_name("clachan"))
MYSELF = pwd.getpwuid(os.geteuid()).pw_name
BANNER = b"RFB 003.008\n"
CONSOLE = "connected to the console of home.box: Enter shows its prompt, Ctrl-] leaves"
NOT_SERVED = "expected a machine that runs and was made with it\n"
Serve = Callable[[socket.socket], None]


def login(connection: socket.socket) -> None:
    """As a machine's console: says what it is at each Enter, and echoes."""
    while data := connection.recv(65536):
        connection.sendall(data.replace(b"\r", b"\r\nbox login: "))


def screen(connection: socket.socket) -> None:
    connection.sendall(BANNER)
    connection.sendall(connection.recv(12))


def deaf(connection: socket.socket) -> None:
    """A machine that hangs: takes nothing, says nothing, until the connection is gone."""
    state = select.poll()
    state.register(connection, select.POLLHUP)
    state.poll()


class Server:
    """Listens at a unix socket; counts who is connected."""

    def __init__(self, path: Path, serve: Serve) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._serve, self.connected = serve, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._one, args=self._listener.accept()[:1], daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        self.connected += 1
        with connection, suppress(OSError):
            self._serve(connection)
        self.connected -= 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Box:
    """The VM home.box in its slot, and commands about it."""

    def __init__(self, live: Live, slot: Path) -> None:
        self.live, self.slot = live, slot
        self._servers: list[Server] = []
        self._commands: list[subprocess.Popen[bytes]] = []

    def serve(self, name: str, how: Serve) -> Server:
        self._servers.append(Server(self.slot / name, how))
        return self._servers[-1]

    def connect(self, *words: str, caller: Caller | None = None, **options: Any) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLACHAN_")}
        who = caller or self.live
        kept |= {"CLACHAN_URL": who.url, "CLACHAN_CA": who.ca_file, "CLACHAN_TOKEN": str(who.token), "COLUMNS": "200"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [COMMAND, "instance", "connect", *words]
        self._commands.append(subprocess.Popen(command, env=kept, **(pipes | options)))
        return self._commands[-1]

    def said(self, *words: str, text: bytes = b"", caller: Caller | None = None) -> tuple[int, bytes, str]:
        running = self.connect(*words, caller=caller)
        out, err = running.communicate(text, timeout=60)
        return running.returncode, out, err.decode()

    def close(self) -> None:
        for running in self._commands:
            running.kill()
            running.communicate()
        for server in self._servers:
            server.close()
        for name in ("log/console.sock", "var/vnc.sock"):
            (self.slot / name).unlink(missing_ok=True)
        wait_for(lambda: self.live.controller.streams.all() == [], 20)


@pytest.fixture(scope="module")
def platform_with_a_vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    directory = tmp_path_factory.mktemp("vm")
    # short, as a unix socket's path is limited
    slots = Path(tempfile.mkdtemp(prefix="cla-"))
    stop = threading.Event()
    try:
        with running_controller(directory / "home") as live:
            node = live.join("here", slots=0)
            node.accepted(node_fact(4, slots_directory=str(slots), users=[MYSELF] * 4))
            roles = {"box": role({}, {"makes_node": True, "needs_root": True}), "web": role()}
            live.register(artifact(directory, "acme.things", roles))
            for path, software in (("home.box", "acme.things.box"), ("home.web", "acme.things.web")):
                live.supply("here", software)
                live.request(path, software)
            slot = Path(live.ok("GET", "/instances/home.box")["slot"]["directory"])
            for name in ("log", "var"):
                (slot / name).mkdir(parents=True)
            _answer(live, node, directory / "agent", stop)
            yield Box(live, slot)
            stop.set()
    finally:
        shutil.rmtree(slots)


def _answer(live: Live, node: Any, home: Path, stop: threading.Event) -> None:
    """The part of the agent that is asked, with the node's certificate."""
    layout = Layout(home)
    layout.node.mkdir(parents=True)
    for path, source in ((layout.key, node.cert[1]), (layout.certificate, node.cert[0]), (layout.ca, node.ca_file)):
        shutil.copy(source, path)
    named = {"controller_url": live.url, "node_name": "here", "mode": "root", "slots": 0, "users": []}
    places = {"slots_directory": "/nonexistent", "supervisor_socket": "/nonexistent", "platform_path": "/nonexistent"}
    link = Link(layout, NodeConfig.model_validate(named | places))

    def find(instance: str) -> Any:
        return hosts_of(link.client().slice().document.inventory)[0].get(instance)  # type: ignore[union-attr]

    asked = Answers(link, find, Carrier(link).begin, print)
    threading.Thread(target=keep_doing, args=(stop, "questions", asked.step), daemon=True).start()


@pytest.fixture
def box(platform_with_a_vm: Box) -> Iterator[Box]:
    found = Box(platform_with_a_vm.live, platform_with_a_vm.slot)
    yield found
    found.close()


@pytest.fixture(scope="module")
def mia(platform_with_a_vm: Box) -> Caller:
    return platform_with_a_vm.live.as_user("mia", "member", ["home"])


def test_the_console_in_a_script(box: Box, mia: Caller) -> None:
    box.serve("log/console.sock", login)
    status, out, err = box.said("home.box", "--console", text=b"root\r", caller=mia)
    assert (status, out, err) == (0, b"root\r\nbox login: ", "")
    event = mia.ok("GET", "/events?kind=connected")["items"][-1]
    assert (event["message"], event["data"]["port"]) == ("mia connected to console of home.box", "console")
    assert (event["path"], event["node"], event["tenant"]) == ("home.box", "here", "home")


def test_the_screen_in_a_script(box: Box) -> None:
    box.serve("var/vnc.sock", screen)
    assert box.said("home.box", "--vnc", text=b"RFB 003.003\n") == (0, BANNER + b"RFB 003.003\n", "")


def test_what_is_not_served(box: Box) -> None:
    missing = "clachan: instance home.box: vnc is not served (No such file or directory), " + NOT_SERVED
    assert box.said("home.box", "--vnc") == (1, b"", missing)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(box.slot / "log/console.sock"))
    stale = "clachan: instance home.box: console is not served (Connection refused), " + NOT_SERVED
    assert box.said("home.box", "--console") == (1, b"", stale)
    refused = "clachan: {} of home.web: its software makes no machine, expected a VM\n"
    for word in ("console", "vnc"):
        assert box.said("home.web", f"--{word}") == (1, b"", refused.format(word))


@pytest.mark.parametrize(("outlet", "name"), [("console", "log/console.sock"), ("vnc", "var/vnc.sock")])
def test_no_link_is_followed_to_another_socket(tmp_path: Path, box: Box, outlet: str, name: str) -> None:
    server = box.serve("other.sock", screen)
    (box.slot / name).symlink_to("../other.sock")
    refusal = f"clachan: instance home.box: {outlet} is not served ({name} is another's), expected QEMU's own socket\n"
    assert box.said("home.box", f"--{outlet}") == (1, b"", refusal)
    folder = box.slot / Path(name).parent
    folder.rename(tmp_path / "kept")
    try:
        folder.symlink_to(tmp_path)
        refusal = f"clachan: instance home.box: {outlet} is not served (Not a directory), {NOT_SERVED}"
        assert box.said("home.box", f"--{outlet}") == (1, b"", refusal)
    finally:
        folder.unlink(missing_ok=True)
        (tmp_path / "kept").rename(folder)
    assert server.connected == 0


def test_a_screen_is_of_the_slots_user(box: Box) -> None:
    """Somebody else's socket may have got there as a hard link."""
    box.serve("var/vnc.sock", screen)
    mine = host()
    slot = mine.instance.slot.model_copy(update={"directory": str(box.slot), "user": "daemon"})
    stranger = mine.__class__(**(vars(mine) | {"instance": mine.instance.model_copy(update={"slot": slot})}))
    with pytest.raises(AgentError, match="another's"):
        connect(stranger, "vnc", any_port=True)


def test_a_console_has_one_user_at_a_time(box: Box, mia: Caller) -> None:
    server = box.serve("log/console.sock", login)
    running = box.connect("home.box", "--console", caller=mia)
    assert running.stdin is not None
    running.stdin.write(b"\r")
    running.stdin.flush()
    assert running.stdout is not None
    assert running.stdout.read(12) == b"\r\nbox login: "[:12]
    refusal = "clachan: console of home.box: mia has it, expected one user at a time\n"
    assert box.said("home.box", "--console") == (1, b"", refusal)
    assert box.said("home.box", "--console", text=b"\r", caller=mia)[:2] == (0, b"\r\nbox login: ")
    assert running.wait(10) == 1, "her former one, which may be on a machine that sleeps"
    assert running.stderr is not None
    assert running.stderr.read() == b"clachan: stream to home.box console: broke off, expected its end\n"
    wait_for(lambda: server.connected == 0, 10)


def test_its_log_is_among_the_logs(box: Box) -> None:
    (box.slot / "log/console.log").write_text("Linux version 6.1\r\nbox login: ")
    (box.slot / "log/console.log.0").write_text("older")
    found = box.live.ok("GET", "/instances/home.box/logs?lines=10")["logs"]
    assert found == {"console": "Linux version 6.1\nbox login: "}


class Terminal:
    """A terminal with the command in it; its settings are seen while the command runs and after it."""

    def __init__(self, box: Box, *words: str) -> None:
        self.shown = b""
        self._master, self._slave = pty.openpty()
        self.before = self.settings()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self._slave)
        self.process = box.connect(*words, start_new_session=True, **streams)

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read_until(self, text: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while text.encode() not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 65536)

    def read_line_after(self, text: str) -> str:
        """The rest of the line that `text` ends in; the terminal may give a line in parts."""
        self.read_until(text)
        end = time.monotonic() + 30
        while b"\r\n" not in (rest := self.shown.split(text.encode(), 1)[1]):
            assert time.monotonic() < end, self.shown
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 65536)
        return rest.split(b"\r\n")[0].decode()

    def ended(self, status: int) -> None:
        """The command has ended with that status, and its terminal is as it was."""
        assert self.process.wait(10) == status, self.shown
        assert self.settings() == self.before

    def close(self) -> None:
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal(box: Box) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*words: str) -> Terminal:
        opened.append(Terminal(box, *words))
        return opened[-1]

    yield start
    for one in opened:
        one.process.kill()
        one.process.wait()
        one.close()


def test_the_console_at_a_terminal(box: Box, terminal: Callable[..., Terminal]) -> None:
    server = box.serve("log/console.sock", login)
    opened = terminal("home.box", "--console")
    opened.read_until(CONSOLE)
    opened.type(b"\r")
    opened.read_until("box login: ")
    assert not opened.settings()[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    opened.type(b"\x03\x1a\x1c")
    opened.read_until("\x03\x1a\x1c")
    assert opened.process.poll() is None, "keys that a terminal would act on are the machine's"
    opened.type(b"bye\x1dnot for the machine")
    opened.ended(0)
    opened.read_until("bye")
    assert b"not for the machine" not in opened.shown
    wait_for(lambda: server.connected == 0, 10)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_terminal_as_it_was(
    box: Box, terminal: Callable[..., Terminal], number: int, status: int
) -> None:
    box.serve("log/console.sock", login)
    opened = terminal("home.box", "--console")
    opened.read_until(CONSOLE)
    opened.type(b"\r")
    opened.read_until("box login: ")
    opened.process.send_signal(number)
    opened.ended(status)


def test_a_console_that_ends_leaves_the_terminal_as_it_was(box: Box, terminal: Callable[..., Terminal]) -> None:
    box.serve("log/console.sock", screen)
    opened = terminal("home.box", "--console")
    opened.read_until("RFB")
    opened.type(b"x")
    opened.ended(0)


def test_a_stream_that_breaks_off_leaves_the_terminal_as_it_was(box: Box, terminal: Callable[..., Terminal]) -> None:
    box.serve("log/console.sock", login)
    opened = terminal("home.box", "--console")
    opened.read_until(CONSOLE)
    opened.type(b"\r")
    opened.read_until("box login: ")
    loop = box.live.controller.streams.all()[0]._loop
    loop.call_soon_threadsafe(lambda: box.live.controller.streams.all()[0].end("by the test", now=True))
    opened.ended(1)
    opened.read_until("clachan: stream to home.box console: broke off, expected its end\r\n")


def test_a_machine_that_takes_nothing_is_left(box: Box, terminal: Callable[..., Terminal]) -> None:
    """More is typed than all that is between them holds."""
    server = box.serve("log/console.sock", deaf)
    opened = terminal("home.box", "--console")
    opened.read_until(CONSOLE)
    for _ in range(1024):
        opened.type(b"x" * 1024)
    opened.type(b"\x1d")
    opened.ended(0)
    wait_for(lambda: server.connected == 0, 10)


def test_nothing_to_talk_to_leaves_the_terminal_alone(terminal: Callable[..., Terminal]) -> None:
    opened = terminal("home.box", "--console")
    opened.read_until("console is not served")
    opened.ended(1)


def test_a_viewer_is_given_an_address(box: Box, terminal: Callable[..., Terminal]) -> None:
    server = box.serve("var/vnc.sock", screen)
    opened = terminal("home.box", "--vnc")
    said = "clachan: vnc of home.box is at this address until you press Ctrl-C:\r\n127.0.0.1:"
    port = int(opened.read_line_after(said))
    viewers = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for viewer in viewers:
        assert viewer.recv(12, socket.MSG_WAITALL) == BANNER
    assert server.connected == 3
    for number, viewer in enumerate(viewers):
        viewer.sendall(b"RFB 003.00%d\n" % number)
        assert viewer.recv(12, socket.MSG_WAITALL) == b"RFB 003.00%d\n" % number
        assert viewer.recv(1) == b""
        viewer.close()
    opened.type(b"\x03")
    opened.process.send_signal(signal.SIGINT)
    opened.ended(130)


def test_a_viewer_is_told_why_it_is_cut(box: Box) -> None:
    running = box.connect("home.box", "--vnc", "--listen", "0.0.0.0:0", "--open-to-others")
    assert running.stdout is not None
    port = int(running.stdout.readline().split(b":")[1])
    with socket.create_connection(("127.0.0.1", port)) as viewer:
        assert viewer.recv(1) == b""
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 130
    assert running.stderr is not None
    assert b"clachan: instance home.box: vnc is not served" in running.stderr.read()
