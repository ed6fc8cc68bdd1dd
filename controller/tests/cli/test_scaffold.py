"""`clachan software new`: what it writes lints, builds, and converges to a service that answers."""

import json
import os
import pwd
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from clachan.cli.errors import WRONG_USE, CommandError
from clachan.cli.scaffold import write_software
from clachan.contract.inventory import (
    WRAPPER,
    InstanceVariables,
    Inventory,
    Limits,
    NodeAddresses,
    NodeVariables,
    Ports,
    Slot,
    SlotAddresses,
    WantedState,
)
from clachan.contract.slot import PROMISE, PUBLISHED, HttpPromise, Service
from clachan.contract.software import SoftwareMeta

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
SOFTWARE = "acme.web.front_page"
NODE_ID = "5b0c6ae2-6f0f-4a56-93a1-3b3e9d0a6f11"


def _environment(tmp_path: Path, *collections: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "CLACHAN_"))}
    return kept | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": ":".join(map(str, [*collections, ROOT / "collections"])),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "CLACHAN_HOME": str(tmp_path / "home"),
    }


def _run(command: list[str], directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_it_writes_a_collection_with_one_role(tmp_path: Path) -> None:
    written = write_software(SOFTWARE, tmp_path / "web", "The front page")
    assert [str(path) for path in written] == [
        "CHANGELOG.md",
        "README.md",
        "galaxy.yml",
        "meta/runtime.yml",
        "roles/front_page/README.md",
        "roles/front_page/defaults/main.yml",
        "roles/front_page/meta/argument_specs.yml",
        "roles/front_page/meta/clachan.yml",
        "roles/front_page/meta/main.yml",
        "roles/front_page/tasks/absent.yml",
        "roles/front_page/tasks/main.yml",
        "roles/front_page/templates/index.html.j2",
    ]
    meta = SoftwareMeta.model_validate(yaml.safe_load((tmp_path / "web/roles/front_page/meta/clachan.yml").read_text()))
    assert (meta.title, list(meta.published)) == ("The front page", ["url"])


def test_defaults_argument_specs_and_readme_say_the_same(tmp_path: Path) -> None:
    write_software(SOFTWARE, tmp_path, "It's a \\ page")
    role = tmp_path / "roles/front_page"
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    assert defaults == {name: option["default"] for name, option in options.items()}
    meta = yaml.safe_load((role / "meta/clachan.yml").read_text())
    assert meta["title"] == "It's a \\ page"
    assert set(meta["options"]) <= set(options)
    readme = (role / "README.md").read_text()
    assert all(f"| `{name}` | str | `{value}` |" in readme for name, value in defaults.items())


def test_a_second_role_leaves_the_collection_alone(tmp_path: Path) -> None:
    write_software(SOFTWARE, tmp_path)
    (tmp_path / "README.md").write_text("mine")
    written = write_software("acme.web.api", tmp_path)
    assert {str(path).split("/")[1] for path in written} == {"api"}
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "title", "text"),
    [
        ("clachan.platform.web", None, "software clachan.platform.web: in clachan.platform, expected a collection of"),
        ("acme.web.ansible_x", None, "software acme.web.ansible_x: its parameters would begin with a reserved prefix"),
        (SOFTWARE, "a\nb", "title 'a\\nb': expected at most 50 printable characters without | ` < > { }"),
        (SOFTWARE, "{{ evil }}", "title '{{ evil }}': expected at most 50 printable characters"),
    ],
)
def test_what_cannot_be_a_software(name: str, title: str | None, text: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        write_software(name, tmp_path / "new", title)
    assert str(caught.value).startswith(text)
    assert caught.value.status == WRONG_USE
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    write_software(SOFTWARE, tmp_path / "web")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for name, where, text in [
        (SOFTWARE, "web", f"role front_page: exists in {tmp_path}/web, expected a new name"),
        ("acme.other.page", "web", f"directory {tmp_path}/web: the collection acme.web, expected acme.other"),
        (SOFTWARE, "full", f"directory {tmp_path}/full: not empty, expected a new one or a collection"),
    ]:
        with pytest.raises(CommandError) as caught:
            write_software(name, tmp_path / where)
        assert str(caught.value) == text
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_it_passes_ansible_lint_and_yamllint(tmp_path: Path) -> None:
    write_software(
        "acme.web.a_name_of_thirty_one_characters",
        tmp_path / "web",
        'It\'s 50: "the \\longest title that is allowed" # !!',
    )
    write_software(SOFTWARE, tmp_path / "web")
    environment = _environment(tmp_path)
    lint = _run(["ansible-lint", "--offline", "--strict", "--profile", "production"], tmp_path / "web", environment)
    assert lint.returncode == 0, lint.stdout + lint.stderr
    assert "0 failure(s), 0 warning(s)" in lint.stderr
    yamllint = _run(["yamllint", "--strict", "."], tmp_path / "web", environment)
    assert yamllint.returncode == 0, yamllint.stdout


def _slot(tmp_path: Path) -> Slot:
    directory = tmp_path / "slot"
    for name, mode in (("", 0o750), ("etc", 0o750), ("log", 0o755), ("var", 0o700)):
        (directory / name).mkdir(mode=mode)
    with socket.socket() as bound:
        bound.bind(("127.0.0.9", 0))
        port = bound.getsockname()[1]
    return Slot(
        name="s000",
        index=0,
        user=pwd.getpwuid(os.geteuid()).pw_name,
        directory=str(directory),
        addresses=SlotAddresses(ipv4="127.0.0.9", ipv6="::1"),
        ports=Ports(first=port, count=20),
        limits=Limits(memory_mib=64, tasks=64, cpu_milli=100),
    )


def _write_slice(tmp_path: Path, slot: Slot, parameters: dict[str, str], state: WantedState = "started") -> Path:
    instance = InstanceVariables(
        id="2a8b5c3e-0000-4000-8000-000000000001", revision=1, path="home.page", tenant="home", software=SOFTWARE,
        digest="0" * 64, type="main", state=state, node="here", slot=slot, parent=None, children={}, sealed=[],
    )  # fmt: skip
    node = NodeVariables(
        id=NODE_ID, name="here", labels={}, owner=None, state="active",
        addresses=NodeAddresses(ipv4="127.0.0.0/20", ipv6="fd00::/64"),
    )  # fmt: skip
    inventory = Inventory(
        platform=NODE_ID,
        node="here",
        records={
            "home.page": {"clachan_instance": instance.model_dump(), **parameters},
            "here": {"clachan_node": node.model_dump()},
        },
        groupings={"instances": ["home.page"], "nodes": ["here"]},
        software={},
        supplies=[],
    )
    (tmp_path / "slice.json").write_text(json.dumps({WRAPPER: inventory.model_dump(mode="json")}))
    (tmp_path / "home/node").mkdir(parents=True, exist_ok=True)
    (tmp_path / "home/node/node.json").write_text(json.dumps({"id": NODE_ID, "name": "here"}))
    configuration = tmp_path / "clachan.yml"
    configuration.write_text("plugin: clachan.platform.inventory\nslice: slice.json\n")
    return configuration


def _converge(tmp_path: Path, configuration: Path) -> str:
    environment = _environment(tmp_path, tmp_path / "cols")
    command = ["ansible-playbook", "-i", str(configuration), "clachan.platform.converge"]
    run = _run(command, tmp_path, environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(line for line in run.stdout.splitlines() if line.startswith("home.page "))


@pytest.mark.slow
def test_it_converges_to_a_service_that_answers(tmp_path: Path) -> None:
    write_software(SOFTWARE, tmp_path / "cols/ansible_collections/acme/web")
    slot = _slot(tmp_path)
    text = "{{ 7 * 7 }} <b>$HOME</b>"
    configuration = _write_slice(tmp_path, slot, {"front_page_text": text})
    assert "changed=1" in _converge(tmp_path, configuration)
    assert "changed=0" in _converge(tmp_path, configuration)

    etc = Path(slot.directory) / "etc"
    service = Service.from_json((etc / "services.d/web.json").read_bytes())
    promise = PROMISE.validate_json((etc / "promises.d/answers.json").read_bytes())
    assert isinstance(promise, HttpPromise)
    url = f"http://127.0.0.9:{slot.ports.first}/"
    assert PUBLISHED.validate_json((etc / "published.json").read_bytes()) == {"url": url}
    process = subprocess.Popen(
        service.command,
        cwd=Path(slot.directory) / service.directory,
        env=service.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        page = _fetch(promise.url)
    finally:
        process.terminate()
        process.wait()
    assert "<p>{{ 7 * 7 }} &lt;b&gt;$HOME&lt;/b&gt;</p>" in page
    assert "<h1>Hello</h1>" in page

    assert "changed=1" in _converge(tmp_path, _write_slice(tmp_path, slot, {}, "absent"))
    left = list(etc.rglob("*.json"))
    assert left == []


def _fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 20
    while True:
        try:
            with opener.open(url, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
