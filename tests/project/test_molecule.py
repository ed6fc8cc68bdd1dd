"""Molecule's scenarios on real systemd machines."""

import os
import subprocess
from pathlib import Path

import pytest
from house import ROOT, load
from testbed.lab import Lab
from testbed.probe import obstacle

SCENARIOS = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))


@pytest.mark.heavy
@pytest.mark.root
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, tmp_path: Path) -> None:
    reason = obstacle()
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
