"""As root, with a unix user for each slot: a service that was taken over gets nowhere."""

import json
import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clachan.agent import slots
from clachan.agent.layout import AgentError
from clachan.agent.processes import end_all_of, owned, processes

from .conftest import Artifact, Node, unix_users, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes unix users: needs root"),
]


@pytest.fixture(scope="module")
def users() -> Iterator[list[str]]:
    with unix_users(f"clt{os.getpid()}", 2) as names:
        yield names


@pytest.fixture
def node(home: Path, platform: Path, things: Artifact, users: list[str]) -> Iterator[Node]:
    found = Node(home, platform, things, users, slots=2)
    found.start_supervisord()
    found.open_agent()
    yield found
    found.close()


def owner(path: Path) -> tuple[str, str, str]:
    found = path.lstat()
    return pwd.getpwuid(found.st_uid).pw_name, path.group(), oct(found.st_mode & 0o777)


def run_script(node: Node, script: str, name: str = "evil") -> Path:
    """An instance whose service is this script, then sleeps; gives its slot."""
    node.declare(name, parameters={"hello_command": ["/bin/sh", "-c", f"{script}\ntouch done; exec sleep 9999"]})
    node.send()
    node.until(lambda: node.state(name) == "started")
    slot = node.directory(name)
    node.until(lambda: (slot / "var/done").exists())
    return slot


def test_services_and_promises_run_as_the_slots_user(node: Node, users: list[str]) -> None:
    slot = run_script(node, "id -un > who; id -Gn > groups; cat ../etc/hello.conf > conf")
    assert (slot / "var/who").read_text() == f"{users[0]}\n"
    assert (slot / "var/groups").read_text() == f"{users[0]}\n"
    assert (slot / "var/conf").read_text().startswith("message = hello")
    assert owner(slot) == ("root", users[0], "0o750")
    assert owner(slot / "etc") == ("root", users[0], "0o750")
    assert owner(slot / "etc/hello.conf") == ("root", users[0], "0o640")
    assert owner(slot / "log") == ("root", "root", "0o750")
    assert owner(slot / "var") == (users[0], users[0], "0o700")


def test_every_task_and_promise_of_a_role_is_the_slots_users(node: Node, users: list[str]) -> None:
    node.declare("site", software="acme.things.web", parameters={"web_port": 28_917})
    node.send()
    node.until(lambda: node.state("site") == "started")
    [fact] = node.facts("promises")
    assert fact.results["command"].message == users[0]
    slot = node.directory("site")
    assert owner(slot / "var/www/index.html")[:2] == (users[0], users[0])


def test_module_tasks_of_a_role_run_as_the_slots_user(node: Node, users: list[str]) -> None:
    node.declare("it", software="acme.things.slow", parameters={"slow_text": "x"})
    node.send()
    node.until(lambda: node.state("it") == "started")
    assert (node.directory("it") / "etc/who").read_text() == users[0]


def test_a_service_cannot_rewrite_what_the_agent_obeys(node: Node) -> None:
    script = """
    exec 2> errors
    echo '{"command": ["/bin/sh", "-c", "id > /tmp/owned"]}' > ../etc/services.d/root.json
    rm -f ../etc/hello.conf; mv ../etc ../etc2; mv ../var ../var2; chmod 777 ../etc; rm -rf ../log; touch ../log/x
    ls ../log; cat ../../s001/etc/hello.conf; ls ../../s001/var
    """
    node.declare("other")
    node.records["home.other"]["clachan_instance"]["slot"] = node.slot(1)
    node.send()
    node.until(lambda: node.state("other") == "started")
    node.records = {path: record for path, record in node.records.items() if path != "home.other"} | {
        "home.other": node.records["home.other"]
    }
    other = node.records.pop("home.other")
    slot = run_script(node, script)
    node.records["home.other"] = other
    errors = (slot / "var/errors").read_text()
    assert errors.count("ermission denied") >= 9, errors
    assert sorted(path.name for path in (slot / "etc/services.d").iterdir()) == ["main.json"]
    assert (slot / "etc/hello.conf").exists()
    assert slots.read(slot).services.keys() == {"main"}


def test_links_in_var_lead_roots_writes_nowhere(node: Node, home: Path) -> None:
    victim = home / "victim"
    victim.mkdir()
    (victim / "index.html").write_text("root's own")
    node.declare("site", software="acme.things.web", parameters={"web_port": 28_918})
    node.send()
    node.until(lambda: node.state("site") == "started")
    slot = node.directory("site")
    command = ["/bin/sh", "-c", f"rm -rf {slot}/var/www; ln -s {victim} {slot}/var/www; ln -s {victim} {slot}/var/log"]
    uid = pwd.getpwnam(node.config.users[0])
    subprocess.run(command, check=True, user=uid.pw_uid, group=uid.pw_gid, extra_groups=[])
    node.declare("site", software="acme.things.web", parameters={"web_port": 28_919})
    node.send()
    node.until(lambda: node.state("site") == "failed")
    [failed] = [fact for fact in node.facts("instance") if fact.state == "failed"]
    assert "var/www" in failed.message
    assert (victim / "index.html").read_text() == "root's own"
    assert [path.name for path in victim.iterdir()] == ["index.html"]

    node.declare("site", software="acme.things.web", state="absent")
    node.send()
    node.until(lambda: node.state("site") == "absent")
    assert (victim / "index.html").read_text() == "root's own"
    assert list(slot.iterdir()) == []


def test_a_log_that_is_a_link_is_not_read_nor_written(node: Node) -> None:
    slot = run_script(node, "exec 2> errors; ln -s /etc/shadow ../log/secret.log; rm ../log/main.log")
    assert (slot / "var/errors").read_text().count("ermission denied") == 2


def test_absent_ends_every_process_of_the_user(node: Node) -> None:
    slot = run_script(node, "setsid sleep 7777 & setsid setsid sh -c 'sleep 7777 & sleep 7777' & sleep 0.2")
    uid = pwd.getpwnam(node.config.users[0]).pw_uid

    def left() -> list[int]:
        """Those that wait to be reaped, by whoever is pid 1, have ended."""
        return [pid for pid in processes() if (folder := Path(f"/proc/{pid}")).exists() and folder.stat().st_uid == uid]

    wait_for(lambda: len(left()) >= 4)
    node.declare("evil", state="absent")
    node.send()
    node.until(lambda: node.state("evil") == "absent")
    assert left() == []
    assert list(slot.iterdir()) == []


def test_only_slots_users_are_ended() -> None:
    with pytest.raises(AgentError, match="user id 0: the agent's own, expected a slot's"):
        end_all_of(0)


def test_a_process_in_a_container_has_another_user_of_that_number(users: list[str]) -> None:
    uid = pwd.getpwnam(users[0]).pw_uid
    inside = ["setpriv", "--reuid", str(uid), "--clear-groups", "sleep", "60"]
    container = subprocess.Popen(["unshare", "--pid", "--fork", *inside])
    wait_for(lambda: any(one.parent == container.pid for one in processes().values()))
    [pid] = [one.pid for one in processes().values() if one.parent == container.pid]
    try:
        wait_for(lambda: Path(f"/proc/{pid}").stat().st_uid == uid)
        end_all_of(uid)
        assert owned(processes(), {uid}) == {uid: []}
        assert pid in processes()
    finally:
        os.kill(pid, signal.SIGKILL)
        container.wait()


def test_the_agents_files_are_closed_to_slots(node: Node) -> None:
    script = "exec 2> errors; cat ../../../node/slice.json ../../../node/key.pem ../../../supervisor/supervisor.sock"
    node.keep_slice()
    node.layout.node.chmod(0o700)
    (node.home / "supervisor").chmod(0o700)
    slot = run_script(node, script)
    assert (slot / "var/errors").read_text().count("ermission denied") == 3
    assert json.loads(node.layout.slice.read_text())
    assert node.layout.state.stat().st_mode & 0o077 == 0
    assert node.layout.spool.stat().st_mode & 0o077 == 0
