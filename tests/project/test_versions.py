"""One version, in galaxy.yml; all else equals it. Change log and dependencies are told."""

import re
import subprocess
import sys
import tomllib

import clachan
import clachan_lake
import pytest
from house import ROOT, load

VERSION = load(ROOT / "galaxy.yml")["version"]
DISTRIBUTIONS = ["controller", "lake"]


def _project(distribution: str) -> dict:
    return tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions_have_the_collections_version(distribution: str) -> None:
    assert _project(distribution)["version"] == VERSION


def test_packages_have_the_collections_version() -> None:
    assert (clachan.__version__, clachan_lake.__version__) == (VERSION, VERSION)


def test_the_licences_are_those_of_the_parts() -> None:
    licences = load(ROOT / "galaxy.yml")["license"]
    assert [_project(part)["license"] for part in DISTRIBUTIONS] == licences == ["GPL-3.0-or-later", "Apache-2.0"]


def test_the_oldest_ansible_is_the_same_everywhere() -> None:
    oldest = load(ROOT / "meta/runtime.yml")["requires_ansible"].removeprefix(">=")
    needed = next(line for line in _project("controller")["optional-dependencies"]["agent"] if "ansible-core" in line)
    assert f">={oldest.removesuffix('.0')}" in needed


def test_changelog_fragments_are_valid() -> None:
    sections = {section for section, _ in load(ROOT / "changelogs/config.yaml")["sections"]}
    fragments = list((ROOT / "changelogs/fragments").glob("*.y*ml"))
    assert fragments
    for path in fragments:
        for section, entries in load(path).items():
            if section == "release_summary":
                assert isinstance(entries, str), path.name
                continue
            assert section in {*sections, "trivial"}, f"{path.name}: section {section}"
            for entry in entries:
                assert re.match(r"[a-z_][\w. /-]* - \S", entry), f"{path.name}: {entry!r}, expected '<part> - <text>'"


def test_the_changelog_tool_accepts_the_fragments() -> None:
    tool = [sys.executable, "-m", "antsibull_changelog", "lint"]
    linted = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_dependency_has_its_reason() -> None:
    told = re.findall(r"^\| ([\w.-]*\w) \|[^|]+\| \S", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    extras = [_project(part)["optional-dependencies"].values() for part in DISTRIBUTIONS]
    shipped = [line for part in DISTRIBUTIONS for line in _project(part)["dependencies"]]
    shipped += [line for groups in extras for group in groups for line in group]
    tools = [line for path in (ROOT / "files/requirements").glob("*.in") for line in path.read_text().splitlines()]
    reasons = {name.lower() for name in told} - {"package"}
    missing, stale = _names(shipped) - reasons, reasons - _names(shipped) - _names(tools)
    assert not missing
    assert not stale


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=~\[; ]", line)[0].lower() for line in requirements if line and not line.startswith("#")}
