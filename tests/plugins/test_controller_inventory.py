"""The inventory as the controller gives it, and pushes made from it: secrets, texts of tenants, permissions."""

import json
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import BIN, Finished, run
from .payloads import payloads

pytestmark = pytest.mark.slow

HELLO = "testing.software.hello"
SECRET = "c4nary-s3cret"
ROLE = Path(__file__).parent / "software" / "roles" / "hello"


@dataclass
class Push:
    """A platform on this machine, its node's slots on disk, and an operator who pushes."""

    live: Any
    node: Any
    directory: Path
    collections: Path

    def ansible(self, program: str, *arguments: str, **environment: str) -> Finished:
        variables = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "CLACHAN_HOME": str(self.live.home),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_NOCOLOR": "1",
        }
        inventory = str(Path(__file__).resolve().parents[2] / "inventories" / "standalone")
        return run([str(BIN / program), "-i", inventory, *arguments], self.directory, variables | environment)

    def slot(self, path: str) -> Path:
        return Path(self.live.ok("GET", f"/instances/{path}")["slot"]["directory"])

    def token(self, name: str, role: str, reveal: bool) -> str:
        token: str = self.live.as_user(name, role, ["home"], reveal).token
        return token


@pytest.fixture(scope="module")
def push(tmp_path_factory: pytest.TempPathFactory, collections: Path) -> Iterator[Push]:
    from live import artifact, node_fact, running_controller

    directory = tmp_path_factory.mktemp("push")
    role = {str(file.relative_to(ROLE)): file.read_text() for file in ROLE.rglob("*.yml")}
    with running_controller(directory / "home") as live:
        live.register(artifact(directory, "testing.software", {"hello": role}))
        node = live.join("here", slots=0, labels={"site": "home"})
        slots = directory / "home" / "slots"
        for index in range(40):
            for part in ("etc", "var"):
                (slots / f"s{index:03d}" / part).mkdir(parents=True, mode=0o750)
        me = pwd.getpwuid(os.geteuid()).pw_name
        node.accepted(node_fact(40, "user", slots_directory=str(slots), users=[me] * 40))
        (live.home / "node").mkdir()
        (live.home / "node" / "node.json").write_text(json.dumps({"id": node.id, "name": "here"}))
        live.supply("here", HELLO)
        live.request("home.one", HELLO, parameters={"hello_message": "hi", "hello_secret": SECRET})
        live.request("home.two", HELLO, parameters={"hello_message": "ho"})
        yield Push(live, node, directory, collections)


def without_marks(value: Any) -> Any:
    """What `ansible-inventory --list` shows, without its marks: it marks every text that it does not trust."""
    if isinstance(value, dict):
        if set(value) == {"__ansible_unsafe"}:
            return value["__ansible_unsafe"]
        return {key: without_marks(part) for key, part in value.items()}
    return [without_marks(part) for part in value] if isinstance(value, list) else value


def converge(push: Push, *arguments: str, **environment: str) -> Finished:
    return push.ansible("ansible-playbook", "clachan.platform.converge", *arguments, **environment)


def test_the_graph_has_every_group(push: Push) -> None:
    graph = push.ansible("ansible-inventory", "--graph")
    assert graph.status == 0, graph.all
    groups = {
        block.split(":", 1)[0]: set(block.split(":", 1)[1].replace("|", " ").replace("--", " ").split())
        for block in graph.out.split("@")[1:]
    }
    for group in ("instances", "tenant_home", "software_hello", "node_here"):
        assert {"home.one", "home.two"} <= groups[group], graph.out
    assert groups["nodes"] == groups["label_site_home"] == {"here"}
    assert groups["unrevealed"] == {"home.one"}
    assert groups["clachan_controller"] == {"localhost"}


def test_push_reveals_once_and_the_second_changes_nothing(push: Push) -> None:
    before = len(push.live.ok("GET", "/events?kind=secret_revealed")["items"])
    first = converge(push, "--limit", "home.one,home.two", "--diff", "-vvv")
    assert first.status == 0, first.all
    assert first.recap()["home.one"]["changed"] == 1
    assert json.loads((push.slot("home.one") / "etc/published.json").read_text())["secret"] == SECRET
    second = converge(push, "--limit", "*.one")
    assert second.status == 0, second.all
    assert {host: words["changed"] for host, words in second.recap().items()} == {"home.one": 0}
    assert len(push.live.ok("GET", "/events?kind=secret_revealed")["items"]) == before + 2
    assert SECRET not in first.all + second.all


def test_without_the_permission_it_is_refused_not_run(push: Push) -> None:
    token = push.token("ordinary", "operator", reveal=False)
    done = converge(push, "--limit", "*.one", "--diff", CLACHAN_TOKEN=token)
    assert done.status == 2
    assert "secrets of home.one: not revealed (" in done.all
    assert "expected a user with the permission reveal" in done.all
    assert done.recap()["home.one"]["ok"] == 0
    written = [path for path in (push.slot("home.one") / "etc").rglob("*") if path.is_file()]
    assert not any(b"<secret>" in path.read_bytes() for path in written)
    allowed = converge(push, "--limit", "*.two", CLACHAN_TOKEN=token)
    assert allowed.status == 0, allowed.all


def test_secrets_stand_nowhere_in_an_inventory(push: Push) -> None:
    listed = push.ansible("ansible-inventory", "--list")
    hosts = without_marks(json.loads(listed.out)["_meta"]["hostvars"])
    assert hosts["home.one"]["hello_secret"] == "<secret>"
    assert hosts["home.one"]["ansible_connection"] == "local"
    assert SECRET not in listed.all + push.ansible("ansible-inventory", "--list", "-vvvv").all


def test_tenants_texts_stay_texts_on_every_way(push: Push, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    texts = {name: text for name, text in payloads(canary).items() if name != "lookalike"}
    for name, text in texts.items():
        parameters = {"hello_message": text, "hello_secret": text, "hello_map": {text: [text]}, "hello_list": [text]}
        push.live.request(
            f"home.p_{name}", HELLO, parameters={k: v for k, v in parameters.items() if v != ""}, title=text
        )
        push.node.started(f"home.p_{name}", message=text, published={"message": text})
    listed = push.ansible("ansible-inventory", "--list")
    hosts = without_marks(json.loads(listed.out)["_meta"]["hostvars"])
    pushed = converge(push, "--limit", "home.p_*", "--diff", "-v")
    assert pushed.status == 0, pushed.all
    shown = push.ansible(
        "ansible", "home.p_*", "-m", "ansible.builtin.debug", "-a", "msg={{ [hello_message | default(), hello_map] }}"
    )
    assert shown.out.count("SUCCESS") == len(texts), shown.all
    gathered = push.ansible("ansible", "localhost", "-m", "clachan.platform.request_info", "-a", "tenant=home")
    assert gathered.status == 0, gathered.all
    for name, text in texts.items():
        assert hosts[f"home.p_{name}"].get("hello_message", "") == text
        assert hosts[f"home.p_{name}"]["hello_map"] == {text: [text]}
        written = json.loads((push.slot(f"home.p_{name}") / "etc/hello.json").read_text())
        assert written == {"message": text or "hello", "map": {text: [text]}, "list": [text]}
        if text:
            published = json.loads((push.slot(f"home.p_{name}") / "etc/published.json").read_text())
            assert published["secret"] == text
    assert not canary.exists()


def test_a_title_or_published_value_in_a_playbook_is_a_text(push: Push, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = payloads(canary)["template"]
    push.live.request("home.looked", HELLO, title=text)
    push.node.started("home.looked", message=text, published={"message": text})
    playbook = tmp_path / "look.yml"
    playbook.write_text(
        """
- hosts: localhost
  gather_facts: false
  tasks:
    - clachan.platform.request_info: {path: home.looked}
      register: found
    - ansible.builtin.set_fact:
        again: "{{ found.instances[0].title }} {{ found.instances[0].published.message }}"
    - ansible.builtin.copy:
        content: "{{ again }}"
        dest: written
        mode: "0600"
"""
    )
    done = push.ansible("ansible-playbook", str(playbook))
    assert done.status == 0, done.all
    assert (tmp_path / "written").read_text() == f"{text} {text}"
    assert not canary.exists()


def test_request_says_how_it_goes_while_it_waits(push: Push, tmp_path: Path) -> None:
    playbook = tmp_path / "wait.yml"
    playbook.write_text(
        """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Wait in vain
      clachan.platform.request:
        path: home.vain
        software: testing.software.hello
        parameters: {hello_secret: another-c4nary}
        wait_timeout: 1
"""
    )
    done = push.ansible("ansible-playbook", "-vvv", str(playbook), ANSIBLE_STDOUT_CALLBACK="clachan.platform.progress")
    assert done.status == 2
    assert "home.vain: allocated" in done.out
    assert (
        "instance home.vain: allocated" in done.all.partition("FAILED")[0] or "after 1 s, expected started" in done.all
    )
    assert "another-c4nary" not in done.all


def test_secret_results_are_hidden_from_output_yet_can_be_used(push: Push) -> None:
    push.live.request("home.shown", HELLO, parameters={"hello_secret": SECRET})
    push.node.started("home.shown", published={"secret": SECRET, "message": "hi"})
    playbook = push.directory / "shown.yml"
    playbook.write_text(
        """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Ask
      clachan.platform.request:
        path: home.shown
        software: testing.software.hello
        parameters: {hello_secret: "{{ lookup('ansible.builtin.env', 'CANARY') }}"}
        reveal: true
        wait_timeout: 20
      register: shown
    - name: Use
      ansible.builtin.assert:
        that: shown.published.secret == lookup('ansible.builtin.env', 'CANARY')
        quiet: true
"""
    )
    done = push.ansible("ansible-playbook", "-vvv", str(playbook), CANARY=SECRET)
    assert done.status == 0, done.all
    assert "censored" in done.all
    assert SECRET not in done.all
    token = push.ansible("ansible", "localhost", "-vvv", "-m", "clachan.platform.join_token", "-a", "node=cellar")
    assert "censored" in token.all, token.all


def test_the_notice_of_a_platform_that_is_not_up(push: Push, tmp_path: Path) -> None:
    done = push.ansible("ansible-inventory", "--graph", CLACHAN_HOME=str(tmp_path))
    assert done.status == 0
    assert "home.one" not in done.out
    assert "The platform is not up, its inventory is empty: controller: not known" in done.err


def test_a_refused_token_is_an_error_even_where_the_platform_is_optional(push: Push) -> None:
    done = push.ansible(
        "ansible-inventory", "--graph", CLACHAN_TOKEN="wrong", ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1"
    )
    assert done.status != 0
    assert "The platform is not up" not in done.all
