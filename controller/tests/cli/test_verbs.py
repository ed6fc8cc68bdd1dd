"""Every verb: its help, its --json, its place in the documents; starting quickly, and the arrows of the house."""

import ast
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clachan.cli
import clachan.client
import pytest
import typer
from clachan.cli.app import app, run

ROOT = Path(__file__).resolve().parents[3]
OTHERS = {"controller", "agent", "lake"}
"""Groups that other packages bring, and document."""

WITHOUT_JSON = {"up", "down", "reset", "node join", "instance connect"}
"""They run Ansible, stop processes or carry bytes; no object of the API is their answer."""

HELP_SECONDS = 0.4


def _leaves(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if prefix or name not in OTHERS:
            if hasattr(command, "commands"):
                yield from _leaves(command, f"{prefix}{name} ")
            # `demo` is a verb of its own, too
            if getattr(command, "invoke_without_command", True):
                yield f"{prefix}{name}", command


VERBS = dict(_leaves(typer.main.get_command(app)))


def test_the_verbs_that_are_promised() -> None:
    promised = {
        "login", "request", "supply", "usage", "events", "inventory", "instance list", "instance show",
        "instance delete", "instance revisions", "instance logs", "instance wait", "instance connect",
        "instance host-key", "node list", "node show",
        "node token", "node label", "node drain", "node revoke", "node join", "software register", "software list",
        "software show", "software new",
    }  # fmt: skip
    assert promised <= VERBS.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_everything_about_a_verb_has_help(verb: str) -> None:
    command = VERBS[verb]
    assert command.help
    assert command.help.strip()[0].isupper()
    assert [parameter.name for parameter in command.params if not parameter.help] == []


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - WITHOUT_JSON))
def test_every_verb_speaks_json(verb: str) -> None:
    assert "--json" in {option for parameter in VERBS[verb].params for option in parameter.opts}


def test_no_option_takes_a_secret() -> None:
    """What stands in argv is seen by everybody on the machine."""
    secret = re.compile(r"token|secret|password")
    found = {
        f"{verb} {option}"
        for verb, command in VERBS.items()
        for parameter in command.params
        for option in parameter.opts
        if secret.search(option)
    }
    assert found == {"login --token-file", "node join --token-file"}


def test_the_document_has_every_verb_and_no_other() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    assert set(re.findall(r"^\| `clachan ([a-z -]+)` \|", text, re.MULTILINE)) == VERBS.keys()


def test_the_examples_of_the_documents_are_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line of a code block that begins with clachan is parsed, up to where it would ask a controller."""
    monkeypatch.chdir(tmp_path)
    for name in ("CLACHAN_URL", "CLACHAN_TOKEN", "CLACHAN_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLACHAN_HOME", str(tmp_path / "none"))
    lines = []
    for name in ("cli", "software-roles"):
        blocks = re.findall(r"^```\n(.*?)^```", (ROOT / f"docs/{name}.md").read_text(), re.MULTILINE | re.DOTALL)
        text = "".join(blocks).replace("\\\n", " ")
        lines += [line for line in text.splitlines() if line.startswith("clachan ")]
    assert len(lines) > 10
    for line in lines:
        with pytest.raises(SystemExit) as end:
            run(shlex.split(line, comments=True)[1:])
        said = capsys.readouterr().err
        fine = end.value.code == 0 or (end.value.code == 1 and f"{tmp_path}/none/credentials.json" in said)
        assert fine, f"{line}: {end.value.code} {said}"


def test_help_is_quick() -> None:
    def seconds() -> float:
        """Of CPU: the machine may be busy with other tests."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([Path(sys.executable).with_name("clachan"), "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < HELP_SECONDS


def test_help_loads_neither_client_nor_server() -> None:
    script = (
        "import sys; sys.argv = ['clachan', '--help']\n"
        "from clachan.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('requests', 'pydantic', 'fastapi', 'ansible', 'clachan.client') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (clachan.cli, ("clachan.cli", "clachan.client", "clachan.contract")),
        (clachan.client, ("clachan.client", "clachan.contract")),
    ],
)
def test_imports_point_one_way(package: Any, allowed: tuple[str, ...]) -> None:
    wrong = []
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.name}: {n}" for n in names if n.startswith("clachan.") and not n.startswith(allowed)]
    assert wrong == []
