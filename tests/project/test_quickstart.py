"""The quickstart is a transcript: its commands are run on real machines, and stand in the document as they were run."""

import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT
from testbed.host import LabError
from testbed.lab import Lab
from testbed.machine import Machine
from testbed.probe import obstacle
from testbed.quickstart import DOCUMENT, Quickstart
from testbed.story import CHECKOUT, Step, check, commands, commands_in, recap, stable, tell

SCRIPT = ROOT / "tests/testbed/quickstart.py"


def test_the_document_has_the_commands_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    status = check(DOCUMENT, Quickstart(Lab()).story())
    assert status == 0, capsys.readouterr().out


def test_what_differs_between_runs_is_a_placeholder() -> None:
    token = f"{'0a' * 16}.{'x' * 43}"
    said = (
        f"token {token}   \nat 2026-11-22T10:03:41.123Z by 1b4e28ba-2fa1-11d2-883f-0016d3cca427\n\n"
        f"digest {'ab12' * 16} or {'ab12' * 3}, http://127.3.2.16:20020/ after 12.5 s\n"
    )
    assert stable(said) == (
        "token <token>\nat <time> by <id>\n\n"
        "digest <sha256> or <digest>, http://<slot's address>:20020/ after <seconds> s\n"
    )


def test_of_a_playbook_only_the_recap_is_shown() -> None:
    assert recap("TASK [a]\nok: [b]\n\nPLAY RECAP ***\nb : ok=1\n") == "...\nPLAY RECAP ***\nb : ok=1\n"


def test_commands_are_found_again_in_the_transcript() -> None:
    story = ["# Prose", Step("one", "echo 'a b'"), "```\nno command\n```", Step("two", "false", status=1)]
    shell = {"one": _shell(Path.cwd()), "two": _shell(Path.cwd())}
    written = tell(story, shell.__getitem__)
    assert "```console\none$ echo 'a b'\na b\n```\n" in written
    assert commands_in(written) == commands(story) == ["one$ echo 'a b'", "two$ false"]


def test_a_command_that_says_something_else_ends_the_story() -> None:
    with pytest.raises(LabError, match=r"^one\$ echo no: exit 0, expected exit 0 and /yes/; it said:\nno$"):
        tell([Step("one", "echo no", says=["yes"])], lambda _: _shell(Path.cwd()))


class _Here(Machine):
    """A machine that is this process's own: enough to run a command in a folder."""

    def enter(self, command: list[str], environment: dict[str, str] | None = None) -> list[str]:  # type: ignore[override]
        shell, flag, text = command
        return [shell, flag, text.replace(f"cd {CHECKOUT}", f"cd {self.folder}")]


def _shell(folder: Path) -> Machine:
    return _Here("here", "lab", "", str(folder), [])


@pytest.mark.heavy
@pytest.mark.root
@pytest.mark.timeout(1200)
def test_the_quickstart_works(tmp_path: Path) -> None:
    reason = obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    written = tmp_path / "quickstart.md"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--output", written],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20000:]
    assert commands_in(written.read_text()) == commands_in((ROOT / "docs/quickstart.md").read_text())
