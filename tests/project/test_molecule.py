"""Molecule's scenarios on real systemd machines."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from house import ROOT, load
from testbed import guest, images, probe
from testbed.lab import Lab

SCENARIOS = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
WITHOUT_GUESTS = {"node"}
"""The others build images or boot guests."""
LONG = {"cluster"}
"""For these CI has no time: `./dev heavy --long`."""
EXAMPLE = ROOT / "docs/molecule/banner"


def _scenarios() -> list[object]:
    return [pytest.param(name, marks=_marks(name)) for name in SCENARIOS]


def _marks(scenario: str) -> list[pytest.MarkDecorator]:
    guests = [] if scenario in WITHOUT_GUESTS else [pytest.mark.guest]
    return [*guests, pytest.mark.long] if scenario in LONG else guests


def _obstacle(scenario: str) -> str | None:
    if scenario in WITHOUT_GUESTS:
        return probe.obstacle()
    return images.obstacle() or guest.obstacle() or probe.obstacle()


@pytest.mark.heavy
@pytest.mark.root
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", _scenarios())
def test_scenario(scenario: str, tmp_path: Path) -> None:
    reason = _obstacle(scenario)
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    lab = f"m{os.getpid()}"  # two runs on one host do not meet
    environment = {
        **os.environ,
        "PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "CLACHAN_LAB": lab,
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "NO_COLOR": "1",
    }
    try:
        done = subprocess.run(
            ["molecule", "test", "--scenario-name", scenario],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    finally:
        Lab(lab).down()
    assert done.returncode == 0, done.stdout[-60000:]


def test_every_scenario_shares_the_base_configuration() -> None:
    base = load(ROOT / ".config/molecule/config.yml")
    assert base["prerun"] is False
    assert {"check", "converge", "idempotence", "side_effect", "verify"} <= set(base["scenario"]["test_sequence"])
    for scenario in SCENARIOS:
        own = load(ROOT / "molecule" / scenario / "molecule.yml")
        assert set(own) == {"scenario"}, f"{scenario}: {sorted(own)}, expected only what differs from the base"
        assert own["scenario"]["name"] == scenario


def test_the_document_shows_every_file_of_the_example() -> None:
    """The scenario `cluster` runs these files."""
    document = (ROOT / "docs/molecule.md").read_text()
    shown = dict(re.findall(r"^```yaml\n# ([\w./]+)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL))
    files = {str(path.relative_to(EXAMPLE)): path.read_text() for path in EXAMPLE.rglob("*.yml")}
    assert shown.keys() == {name for name in files if name != "meta/main.yml"}
    for name, text in shown.items():
        assert text == files[name].removeprefix("---\n"), f"{name}: not as in {EXAMPLE}, expected the same text"
