"""The transcript of clusters of virtual machines: its commands are run on real machines, as the document has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT
from testbed import guest, images, probe
from testbed.clusters import DOCUMENT, Clusters
from testbed.lab import Lab
from testbed.story import check, commands_in

SCRIPT = ROOT / "tests/testbed/clusters.py"


def test_the_document_has_the_commands_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    status = check(DOCUMENT, Clusters(Lab()).story())
    assert status == 0, capsys.readouterr().out


@pytest.mark.heavy
@pytest.mark.guest
@pytest.mark.long
@pytest.mark.root
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.geteuid() != 0, reason="this machine cannot: the tests do not run as root")
def test_clusters_are_ordered_used_cut_off_and_removed(tmp_path: Path) -> None:
    reason = images.obstacle() or guest.obstacle() or probe.obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    written = tmp_path / "transcript.md"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--output", written],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:]
    assert commands_in(written.read_text()) == commands_in(DOCUMENT.read_text())
