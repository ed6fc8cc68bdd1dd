"""A role says its options three times (defaults, argument_specs, README) and the three agree."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from house import ROOT, load, roles

ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
MADE = (re.compile(r"register: (\w+)"), re.compile(r"^ *(\w+):", re.MULTILINE))
STAGES = ["preflight", "install", "configure", "run"]
EACH = pytest.mark.parametrize("role", roles(), ids=lambda role: role.name)


def options(role: Path) -> dict[str, dict[str, Any]]:
    """Name -> spec of the options of all entry points."""
    found: dict[str, dict[str, Any]] = {}
    for entry in load(role / "meta/argument_specs.yml")["argument_specs"].values():
        found |= entry.get("options") or {}
    return found


@EACH
def test_options_have_the_roles_prefix(role: Path) -> None:
    assert not [name for name in options(role) if not name.startswith(f"{role.name}_")]


@EACH
def test_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    specified = {name: spec["default"] for name, spec in options(role).items() if "default" in spec}
    assert load(role / "defaults/main.yml") == (specified or None)


@EACH
def test_every_option_is_commented_in_place(role: Path) -> None:
    """Above each default, or each commented out option without one, stands what it is."""
    lines = (role / "defaults/main.yml").read_text().splitlines()
    places = {match[1]: number for number, line in enumerate(lines) if (match := re.match(r"(?:# )?(\w+):", line))}
    bare = []
    for name in options(role):
        above = places.get(name, 0) - 1
        while above > 0 and re.match(r"# \w+:", lines[above]):
            above -= 1
        if name not in places or not lines[above].startswith("# "):
            bare.append(name)
    assert not bare


@EACH
def test_the_readme_shows_the_argument_specs(role: Path) -> None:
    rows = {
        name: (kind, default)
        for name, kind, default, meaning in ROW.findall((role / "README.md").read_text())
        if meaning
    }
    shown = {name: rows.get(name) for name in options(role)}
    assert shown == {name: (_kind(spec), _default(spec)) for name, spec in options(role).items()}
    assert not [name for name in rows if name.startswith(f"{role.name}_") and name not in options(role)]


def _kind(spec: dict[str, Any]) -> str:
    return f"list of {spec['elements']}" if "elements" in spec else spec.get("type", "str")


def _default(spec: dict[str, Any]) -> str:
    if spec.get("required"):
        return "required"
    if "default" not in spec:
        return ""
    default = spec["default"]
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


@EACH
def test_the_role_uses_no_variable_that_nobody_can_know(role: Path) -> None:
    """Ansible lets a misspelt variable of a role pass: it must be an option, or made by the role itself."""
    texts = [
        path.read_text() for folder in ("tasks", "templates", "handlers", "vars") for path in _texts(role / folder)
    ]
    used = {name for text in texts for name in re.findall(rf"(?<![\w.]){role.name}_\w+", text)}
    made = {name for text in texts for pattern in MADE for name in pattern.findall(text)}
    unknown = used - set(options(role)) - made
    assert not unknown


def _texts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


@EACH
def test_every_entry_point_has_its_tasks(role: Path) -> None:
    entries = load(role / "meta/argument_specs.yml")["argument_specs"]
    assert not [entry for entry in entries if not (role / f"tasks/{entry}.yml").exists()]
    assert "main" in entries


@EACH
def test_the_skeleton(role: Path) -> None:
    """Platform roles have stages with tags of their own; software roles say what they are and how they leave."""
    if (role / "meta/clachan.yml").exists():
        assert (role / "tasks/absent.yml").exists()
        return
    stages = load(role / "tasks/main.yml")
    assert [Path(stage["ansible.builtin.import_tasks"]).stem for stage in stages] == STAGES
    assert all(name in stage["tags"] for name, stage in zip(STAGES, stages, strict=True))
    assert set(stages[0]["tags"]) == set(STAGES), "preflight runs with every stage: it is what the others stand on"


@EACH
def test_task_files_are_short_and_modules_have_full_names(role: Path) -> None:
    for path in (role / "tasks").rglob("*.yml"):
        assert path.read_text().count("\n") <= 100, path.name
        for task in _tasks(load(path) or []):
            modules = [key for key in task if "." in key]
            assert len(modules) == 1, f"{path.name}: {task.get('name')}: {modules}, expected one module by full name"
            assert task["name"][0].isupper()


def _tasks(block: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for task in block:
        parts = [key for key in ("block", "rescue", "always") if key in task]
        found += [inner for key in parts for inner in _tasks(task[key])] if parts else [task]
    return found


def test_playbooks_are_lists_of_roles_of_the_collection() -> None:
    for path in sorted((ROOT / "playbooks").glob("*.yml")):
        for play in load(path):
            for role in play.get("roles", []):
                name = role if isinstance(role, str) else role["role"]
                assert name.startswith("clachan.platform."), f"{path.name}: role {name}, expected its full name"
                assert (ROOT / "roles" / name.rpartition(".")[2]).is_dir()
