"""A transcript that is run: prose, and commands on machines whose answers are checked and then shown.

The document is Markdown. Times, ids, digests and secrets in it are placeholders, so that it changes only when the story
or what the commands say changes.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from testbed.host import LabError
from testbed.machine import Machine

FENCE = "```"
CHECKOUT = "~/clachan"
TERMINAL = {"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}
PLACEHOLDERS = [
    (r"\b[0-9a-f]{32}\.[\w-]{20,}", "<token>"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
    (r"\b[0-9a-f]{64}\b", "<sha256>"),
    (r"\bvm_[0-9a-f]{12}\b", "vm_<id>"),
    (r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{12}\b", "<digest>"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "<time>"),
    (r"\b127\.\d+\.\d+\.\d+(?=:\d{5}\b)", "<slot's address>"),
    (r"\b\d+(\.\d+)? s\b", "<seconds> s"),
]


@dataclass
class Step:
    """One command in the transcript."""

    machine: str
    command: str
    says: Sequence[str] = ()
    """Regular expressions that its output must match."""
    within: float = 0
    """Run it again for that many seconds until it says so."""
    status: int = 0
    heard: Callable[[str], None] = field(default=lambda output: None)
    """Gets the whole output, as it was."""
    show: Callable[[str], str] = field(default=lambda output: output)


@dataclass
class Act:
    """Something that is done to the machines and not typed into one; the prose tells it."""

    do: Callable[[], None]


Story = Sequence[str | Step | Act]


def recap(output: str) -> str:
    """The end of a playbook's output."""
    return "...\n" + output[output.index("PLAY RECAP") :]


def tell(story: Story, machines: Callable[[str], Machine]) -> str:
    """Run the story and return its transcript; LabError at the first command that does not say what it should."""
    parts: list[str] = []
    for part in story:
        if isinstance(part, str):
            parts.append(part.strip() + "\n")
        elif isinstance(part, Act):
            part.do()
        else:
            began = time.monotonic()
            said = _run(part, machines(part.machine))
            part.heard(said)
            print(f"{time.monotonic() - began:6.1f} s  {part.machine}$ {part.command}", flush=True)
            parts.append(f"{FENCE}console\n{prompt(part)}\n{stable(part.show(said))}{FENCE}\n")
    return "\n".join(parts)


def prompt(step: Step) -> str:
    return f"{step.machine}$ {step.command}"


def commands(story: Story) -> list[str]:
    """The prompts with commands, as they stand in the document."""
    return [prompt(part) for part in story if isinstance(part, Step)]


def commands_in(document: str) -> list[str]:
    """The same, read from a document."""
    blocks = re.findall(rf"^{FENCE}console\n(.*?)^{FENCE}$", document, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()[:1]]


def check(document: Path, story: Story) -> int:
    """Compare the commands of a document with those of its script; says how they differ."""
    wanted, found = commands(story), commands_in(document.read_text())
    if wanted == found:
        return 0
    for line in sorted(set(wanted) ^ set(found)):
        print(f"{'missing' if line in wanted else 'no longer in the script'}: {line}")
    print(f"{document.name}: not the commands of its script, expected the script to have written it")
    return 1


def script(document: Path, story: Story, run: Callable[[Path], None]) -> int:
    """The command line of a script that runs a story and writes its document; the exit status."""
    parser = argparse.ArgumentParser(description=f"Runs a story on real machines and writes {document.name}.")
    parser.add_argument("--check", action="store_true", help="compare the document's commands, boot nothing")
    parser.add_argument("--output", type=Path, default=document)
    options = parser.parse_args()
    if options.check:
        return check(document, story)
    try:
        run(options.output)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def stable(output: str) -> str:
    """The output with placeholders for what differs between runs, and without trailing blanks."""
    for pattern, text in PLACEHOLDERS:
        output = re.sub(rf"(?:{pattern})(?P<column>  )?", partial(_placeholder, text), output)
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _placeholder(text: str, found: re.Match[str]) -> str:
    """In a column of a table it is as wide as what it stands for."""
    column = found["column"] or ""
    return f"{text.ljust(len(found[0]) - len(column)) if column else text}{column}"


def _run(step: Step, machine: Machine) -> str:
    end = time.monotonic() + step.within
    while True:
        shell = ["sh", "-c", f"cd {CHECKOUT} && {step.command} 2>&1"]
        done = machine.execute(shell, check=False, environment=TERMINAL, timeout=600)
        missing = [text for text in step.says if not re.search(text, done.stdout, re.MULTILINE)]
        if done.returncode == step.status and not missing:
            return done.stdout
        if time.monotonic() > end:
            wanted = f"exit {step.status}" + "".join(f" and /{text}/" for text in missing)
            raise LabError(f"{prompt(step)}: exit {done.returncode}, expected {wanted}; it said:\n{done.stdout}")
        time.sleep(0.5)
