#!/usr/bin/python3
"""Runs the quickstart on three real machines and writes its transcript, docs/quickstart.md.

`quickstart.py` runs it and writes the document, `quickstart.py --output FILE` writes elsewhere; `quickstart.py --check`
boots nothing and says whether the document has the commands of this script.
"""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from testbed import checkout, network
from testbed.host import REPOSITORY, LabError, until
from testbed.lab import Lab
from testbed.machine import Machine
from testbed.story import CHECKOUT, Act, Step, Story, recap, script, tell
from testbed.wheelhouse import wheelhouse

DOCUMENT = REPOSITORY / "docs" / "quickstart.md"
MACHINES = ("controller", "oak", "elm")
NODES = MACHINES[1:]
PAGES = ("north", "east", "south", "west")
TOKEN = r"^ *token +(\S+)$"
PLAYBOOK = (
    ".venv/bin/ansible-playbook clachan.platform.controller -e controller_hosts=localhost"
    ' -e controller_host=0.0.0.0 -e controller_port=8443 -e \'{"controller_names": ["controller"]}\''
)


class Quickstart:
    """The story, and what it does to the machines between the commands."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def story(self) -> Story:
        return [*self._begin(), *self._join(), *self._order(), *self._break(), *self._back()]

    def _begin(self) -> Story:
        return [
            "# Quickstart: three machines, and one of them dies\n\n"
            "One machine becomes the controller, two more join it with a token; a software is supplied and requested, "
            "the instances spread over the nodes; then one machine loses its power and comes back. "
            "This is the transcript of `tests/testbed/quickstart.py`, which CI runs on real machines; what differs "
            "from run to run stands in `<>`. On one machine alone `./clachan up` does all of it, see "
            "[README](../README.md).\n\n"
            "Each machine is a bare Debian 12 with Python 3.11 and a clone of the repository; the commands are typed "
            "by root in it. The machines have nothing in common but a network.",
            "## A controller\n\nThe first `./clachan` on a machine makes its environment, from pinned wheels.",
            Step("controller", "./clachan --version", says=[r"^clachan \d"]),
            "The controller is a role of the collection; the playbook is called by name. It listens on all addresses, "
            "and its certificate is for the name by which the others reach it.",
            Step("controller", PLAYBOOK, says=[r"failed=0"], show=recap),
            Step("controller", "systemctl is-active clachan-controller", says=["^active$"]),
            "Whoever may read `/var/lib/clachan/credentials.json` is its first user, `operator`.",
            Step("controller", "./clachan node list"),
        ]

    def _join(self) -> Story:
        parts: list[str | Step | Act] = [
            "## Two nodes\n\nA token is for one name, for one hour, and for one machine. It also carries the "
            "fingerprint of the controller's CA, so the machine knows whom it joins."
        ]
        for name in NODES:
            parts += [
                Step(
                    "controller",
                    f"./clachan node token {name} --label house={name}",
                    says=[TOKEN],
                    heard=partial(self._bring_token, name),
                ),
                f"On {name}, where the token stands in a file that only root reads:",
                Step(name, f"./clachan node join https://controller:8443 --name {name} < token", ["failed=0"]),
            ]
        return [
            *parts,
            "Nodes fetch what they have to do; nothing on them listens.",
            Step(
                "controller", "./clachan node list", says=[rf"^ *{name} .*active.*online" for name in NODES], within=20
            ),
        ]

    def _bring_token(self, name: str, said: str) -> None:
        token = re.search(TOKEN, said, re.MULTILINE)
        assert token is not None
        write = ["sh", "-c", f"umask 077 && cat > {CHECKOUT}/token"]
        self.lab.machine(name).execute(write, text=f"{token[1]}\n")

    def _order(self) -> Story:
        return [
            "## A software\n\nA software is an Ansible role. This writes one, a page behind a web server, with a "
            "promise that it answers; registering it keeps its artifact in the controller.",
            Step("controller", "./clachan software new acme.site.page", says=["roles/page/tasks/main.yml"]),
            Step("controller", "./clachan software register site", says=[r"acme\.site\.page"]),
            "It is supplied to the nodes that shall be able to run it.",
            *(Step("controller", f"./clachan supply {name} acme.site.page", says=["present"]) for name in NODES),
            "## Instances\n\nA request says what is wanted, and waits until it is so. With `--spread` the "
            "controller prefers the node that has the fewest.",
            *(
                Step(
                    "controller",
                    f"./clachan request home.{name} acme.site.page --spread -p page_heading='From the {name}'",
                    says=[r"^ *state +started", r"^ *node +(oak|elm)"],
                )
                for name in PAGES
            ),
            Step("controller", "./clachan instance list", says=[rf"home\.{name}.*started" for name in PAGES]),
            Act(self._two_each),
            "The same request again changes nothing: an instance is named by its path.",
            Step(
                "controller",
                "./clachan request home.north acme.site.page --spread -p page_heading='From the north'",
                says=["unchanged"],
            ),
        ]

    def _break(self) -> Story:
        return [
            "## Oak loses its power\n\nSomebody pulls the plug: nothing on it gets to end in order.",
            Act(self._cut),
            "The controller notices after a minute and a half that it does not ask any more. What runs on elm goes on, "
            "and what is requested now is placed there.",
            Step("controller", "./clachan node list", says=[r"^ *oak .*offline", r"^ *elm .*online"], within=150),
            Step(
                "controller",
                "./clachan request home.spare acme.site.page --spread -p page_heading='From a spare place'",
                says=[r"^ *state +started", r"^ *node +elm"],
            ),
            Act(lambda: self._answers("elm")),
            "## And comes back\n\nOak gets its power back, and nobody plugs its network cable in yet. The agent has "
            "its last orders on disk: it starts what it had without the controller, and the pages answer. Then the "
            "cable.",
            Act(self._power_on),
            Step("controller", "./clachan node list", says=[rf"^ *{name} .*online" for name in NODES], within=60),
        ]

    def _back(self) -> Story:
        return [
            "Every node reports facts with ids, counted once however often they arrive. What oak's agent saw is an "
            "outage of each of its instances, and that it ended.",
            Step("controller", "./clachan events --node oak", says=[r"(?s)recovery.*recovery"], within=60),
            Step(
                "controller", "./clachan instance list", says=[rf"home\.{name}.*started" for name in PAGES], within=30
            ),
            "Each instance was converged once: what came back needed no playbook.",
            Step("controller", "./clachan events --kind run"),
            Act(self._nothing_ran_twice),
            "Next: [write a software role](software-roles.md), [operate it](operations.md).",
        ]

    def _ask(self, words: str) -> list[dict[str, Any]]:
        shell = ["sh", "-c", f"cd {CHECKOUT} && ./clachan {words} --json"]
        answer: list[dict[str, Any]] = json.loads(self.lab.machine("controller").execute(shell).stdout)
        return answer

    def _nothing_ran_twice(self) -> None:
        runs = sorted(host for event in self._ask("events --kind run") for host in event["data"]["hosts"])
        wanted = sorted(f"home.{name}" for name in (*PAGES, "spare"))
        if runs != wanted:
            raise LabError(f"runs of {runs}, expected one of each of {wanted}")

    def _two_each(self) -> None:
        placed = sorted(instance["node"] for instance in self._ask("instance list"))
        if placed != ["elm", "elm", "oak", "oak"]:
            raise LabError(f"instances on {placed}, expected two on each node")

    def _cut(self) -> None:
        self.lab.machine("oak").cut()

    def _power_on(self) -> None:
        network.plug(self.lab.namespace, "oak", connected=False)
        self.lab.machine("oak").start()
        self._answers("oak")
        network.plug(self.lab.namespace, "oak", connected=True)

    def _answers(self, node: str) -> None:
        """The pages on that node answer there with their own headings."""
        fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"
        for instance in self._ask("instance list"):
            if instance["node"] != node:
                continue
            url, heading = instance["published"]["url"], instance["parameters"]["page_heading"]
            command = ["python3", "-c", fetch, str(url)]
            machine = self.lab.machine(node)
            if not until(lambda: str(heading) in machine.execute(command, check=False).stdout, 20, pause=0.5):  # noqa: B023
                raise LabError(f"page {url} on {node}: does not show {heading!r} after 20 s")


def run(output: Path) -> None:
    wheels = wheelhouse()
    layers = [checkout.environment_layer(wheels)]
    with Lab(f"q{os.getpid()}", layers, wheels) as lab:
        lab.up(MACHINES)
        with ThreadPoolExecutor() as pool:
            list(pool.map(_prepare, lab.machines().values()))
        output.write_text(tell(Quickstart(lab).story(), lab.machine))


def _prepare(machine: Machine) -> None:
    """As after the clone and the first command, which the transcript shows once."""
    checkout.put(machine)
    if machine.name != "controller":
        machine.execute(["sh", "-c", f"{CHECKOUT}/clachan --version"])


if __name__ == "__main__":
    sys.exit(script(DOCUMENT, Quickstart(Lab()).story(), run))
