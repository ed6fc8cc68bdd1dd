"""What a person at a terminal gets: a live line, questions before something is lost, completion."""

import os
import pty
import select
import subprocess
import threading
import time

import pytest


class Terminal:
    """A command with a terminal as its standard streams."""

    def __init__(self, line: list[str], environment: dict[str, str]) -> None:
        self.screen = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            line,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm", "COLUMNS": "100"},
            start_new_session=True,
        )
        os.close(slave)

    def read_until(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < deadline, self.screen
            self._read()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(30)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 1)
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # the other side is closed
            return False
        self.screen += data.decode()
        return bool(data) or self.process.poll() is None


@pytest.fixture
def terminal(command, environment):
    def start(*arguments: str) -> Terminal:
        return Terminal([command, *arguments], environment)

    return start


def test_the_live_line_says_why_and_how_long(terminal, cli, answers, page) -> None:
    cli("request", "home.live", page, "--no-wait")
    opened = terminal("instance", "wait", "home.live", "--timeout", "60")
    opened.read_until("home.live allocated: revision 1 not converged yet · 1 s")
    node = answers("home.live", "started")
    assert opened.end() == 0
    node.join()
    assert "state     started" in opened.screen


def test_it_asks_before_it_removes(terminal, cli, page, live) -> None:
    cli("request", "home.kept", page, "--label", "zone=mars", "--no-wait")
    opened = terminal("instance", "delete", "home.kept")
    opened.read_until("Remove home.kept, its children and their data? [y/N]: ")
    opened.type("n\n")
    assert opened.end() == 1
    assert live.ok("GET", "/instances/home.kept")["wanted"] == "started"
    opened = terminal("instance", "delete", "home.kept")
    opened.read_until("[y/N]: ")
    opened.type("y\n")
    assert opened.end() == 0
    assert "home.kept: removed" in opened.screen


def test_a_token_is_not_echoed(terminal, live, environment, tmp_path) -> None:
    environment["CLACHAN_HOME"] = str(tmp_path)
    opened = terminal("login", live.url, "--ca", live.ca_file)
    opened.read_until("token: ")
    opened.type(f"{live.token}\n")
    assert opened.end() == 0
    assert live.token not in opened.screen
    assert "user operator, admin; remembered in" in opened.screen


def test_a_fingerprint_is_shown_and_asked_for(terminal, live, environment, tmp_path) -> None:
    environment["CLACHAN_HOME"] = str(tmp_path)
    opened = terminal("login", live.url)
    opened.read_until("Is it the right one? [y/N]: ")
    opened.type("n\n")
    assert opened.end() == 1
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_no_control_characters_of_others(terminal, cli, page) -> None:
    cli(
        "request",
        "home.escape",
        page,
        "--title",
        "\x1b]0;gotcha\x07",
        "-p",
        "page_text=[red]x[/red]\\u001b[2J",
        "--no-wait",
    )
    opened = terminal("instance", "show", "home.escape")
    assert opened.end() == 0
    assert "\x1b]0;" not in opened.screen
    assert "[red]x[/red]" in opened.screen
    assert "\\x1b]0;gotcha\\x07" in opened.screen


def test_ctrl_c_while_waiting(terminal, cli, page) -> None:
    cli("request", "home.stuck", page, "--no-wait")
    opened = terminal("instance", "wait", "home.stuck")
    opened.read_until("home.stuck")
    opened.process.send_signal(2)
    assert opened.end() == 130
    assert "clachan: interrupted" in opened.screen
    assert "Traceback" not in opened.screen


def complete(command, environment, line: str) -> set[str]:
    words = line.split(" ")
    environment = environment | {
        "_CLACHAN_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    ran = subprocess.run([command], env=environment, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_completion_knows_verbs_options_and_names(command, environment, cli, page) -> None:
    cli("request", "home.completed", page, "--no-wait")
    assert complete(command, environment, "clachan inst") == {"instance"}
    assert complete(command, environment, "clachan instance rev") == {"revisions"}
    assert complete(command, environment, "clachan instance show --rev") == {"--reveal"}
    assert complete(command, environment, "clachan instance show home.comp") == {"home.completed"}
    assert complete(command, environment, "clachan node show he") == {"here"}
    assert complete(command, environment, "clachan request home.x acme.web") == {page}
    assert complete(command, environment, "clachan usage --tenant ho") == {"home"}
    assert complete(command, environment, "clachan controller ser") == {"serve"}


def test_completion_without_a_controller_is_silent_and_quick(command, environment, tmp_path) -> None:
    began = time.monotonic()
    assert complete(command, environment | {"CLACHAN_HOME": str(tmp_path)}, "clachan instance show h") == set()
    elsewhere = environment | {"CLACHAN_URL": "https://127.0.0.1:1"}
    assert complete(command, elsewhere, "clachan instance show h") == set()
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_controller_that_comes_back_is_waited_for(cli, environment, tmp_path, page, command, monkeypatch) -> None:
    """While waiting, a controller that does not answer is said, and is no end."""
    from live import running_controller

    home = tmp_path / "other"
    home.mkdir()
    with running_controller(home, process=True) as first:
        first.request("home.kept", first.register(_tiny(tmp_path))[0]["software"])
        first.session.close()
    said: list[str] = []
    wait = [command, "instance", "wait", "home.kept", "--timeout", "60", "--json"]
    with running_controller(home, process=True) as second:
        waiting = subprocess.Popen(
            wait,
            env=environment | {"CLACHAN_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        reader = threading.Thread(target=lambda: said.extend(waiting.stderr))
        reader.start()
        _until(lambda: any("waiting" in line for line in said))
        second.session.close()
    _until(lambda: any("not reachable" in line for line in said))
    with running_controller(home, process=True) as third:
        third.ok("DELETE", "/instances/home.kept")
        assert waiting.wait(60) == 0
        third.session.close()
    reader.join()
    assert waiting.stdout.read() == "null\n"
    waiting.stdout.close()
    waiting.stderr.close()


def _tiny(folder):
    from live import artifact, role

    return artifact(folder, "acme.tiny", {"thing": role()})


def _until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
