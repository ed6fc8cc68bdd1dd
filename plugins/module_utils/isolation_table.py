# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of isolation in the kernel: read, compared with what is wanted, and changed in one transaction.

Usually only elements differ, and only those are changed. When rules differ (another version of the platform, somebody
deleted one) they are written anew within the chains and sets that are there, so that no hook is ever without a chain.
Only when that cannot be (another form of a set) or would take long (thousands of networks to delete one by one) the
tables are deleted and made again; the kernel switches from the old to the new ones at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

from ansible.module_utils.common.process import get_bin_path
from ansible_collections.clachan.platform.plugins.module_utils import isolation_rules as rules
from ansible_collections.clachan.platform.plugins.module_utils.isolation import IsolationError

SLOW_DELETIONS = 300
"""Of elements with networks: deleting one takes the kernel 0.3 ms when there are 3,000, the whole table 220 ms."""
_PROTOCOLS = {"icmp": "1", "tcp": "6", "udp": "17", "ipv6-icmp": "58"}


def program(name, package):
    try:
        return get_bin_path(name)
    except ValueError:
        raise IsolationError("program %s: not found, expected the one of the package %s" % (name, package)) from None


def call(command, text=None):
    """Standard output of a program; raises IsolationError with the first lines of what it complains of."""
    done = _run(command, text)
    if done.returncode:
        said = " ".join(done.stderr.split())[:400]
        raise IsolationError("%s: exit status %d, expected 0: %s" % (" ".join(command)[:80], done.returncode, said))
    return done.stdout


def _run(command, text=None):
    environment = dict(os.environ, LC_ALL="C")
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)


class Live:
    """Our tables as they are in the kernel."""

    def __init__(self, objects):
        self.chains, self.sets, self.rules, self.elements = {}, {}, [], {}
        for one in objects:
            for kind, value in one.items():
                getattr(self, "_" + kind, self._ignore)(value)

    def _ignore(self, value):
        pass

    def _chain(self, value):
        hook = tuple(value.get(key) for key in ("type", "hook", "prio", "policy"))
        self.chains[value["family"], value["name"]] = hook

    def _set(self, value):
        self.sets[value["family"], value["name"]] = value["type"]
        if value["name"] in rules.SETS:
            self.elements[value["name"]] = {_fields(one) for one in value.get("elem", ())}

    def _rule(self, value):
        self.rules.append((value["family"], value["chain"], _uncounted(value["expr"])))

    @property
    def home(self):
        return next((name for family, name in self.chains if name.startswith("home_")), None)

    @property
    def digest(self):
        """Of the rules alone: the same until somebody changes them."""
        return hashlib.sha256(json.dumps(self.rules).encode()).hexdigest()

    @property
    def form(self):
        """Of the names, types and hooks of chains and sets: rules are written anew within them."""
        listed = [sorted(map(repr, found.items())) for found in (self.chains, self.sets)]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _fields(element):
    listed = element["concat"] if isinstance(element, dict) and "concat" in element else [element]
    return tuple(_field(one) for one in listed)


def _field(value):
    if isinstance(value, dict) and "prefix" in value:
        return "%s/%d" % (value["prefix"]["addr"], value["prefix"]["len"])
    if isinstance(value, dict):  # never written by us; shown as it is, so that it is taken out
        return "-".join(str(one) for one in value.get("range", [json.dumps(value)]))
    return _PROTOCOLS.get(value, str(value))


def _uncounted(expressions):
    return [{"counter": None} if "counter" in one else one for one in expressions]


class Table:
    """Our tables, and the file that remembers how the kernel lists the rules that were written."""

    def __init__(self, home, memory):
        self.home, self.memory = home, memory
        self.nft = program("nft", "nftables")

    def read(self):
        """What is there; None when the tables are not. Raises IsolationError when they are another home's."""
        objects = []
        for family in rules.FAMILIES:
            done = _run([self.nft, "-j", "list", "table", family, rules.NAME])
            if done.returncode == 0:
                objects += json.loads(done.stdout)["nftables"]
            elif "No such file" not in done.stderr:
                said = " ".join(done.stderr.split())[:400]
                raise IsolationError("nft list: exit status %d, expected 0: %s" % (done.returncode, said))
        live = Live(objects) if objects else None
        if live and live.home not in (None, rules.home_chain(self.home)):
            raise IsolationError(
                "table inet %s: belongs to another home (%s), expected that of %s (%s): "
                "one home of a machine has virtual machines"
                % (rules.NAME, live.home, self.home, rules.home_chain(self.home))
            )
        return live

    def plan(self, live, wanted):
        """The transaction that leads to what is wanted, empty when it is there; and whether it writes the rules."""
        known = self._remembered()
        same_form = live is not None and known.get("form") == live.form and known.get("shape") == rules.shape(self.home)
        if not same_form or _deletions(live, wanted) > SLOW_DELETIONS:
            return rules.whole(self.home, wanted), True
        text = rules.change(live.elements, wanted)
        if known.get("listed") == live.digest and known.get("rules") == rules.digest(self.home):
            return text, False
        return rules.again(self.home) + text, True

    def apply(self, text):
        """Let the kernel take it all or nothing."""
        call([self.nft, "-f", "-"], text)

    def memory_of(self, live):
        """What to remember of rules that were just written: as they were given, and as the kernel lists them."""
        return {
            "shape": rules.shape(self.home),
            "rules": rules.digest(self.home),
            "form": live.form,
            "listed": live.digest,
        }

    def _remembered(self):
        try:
            with open(self.memory, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _deletions(live, wanted):
    return sum(len(live.elements.get(name, set()) - wanted[name]) for name in rules.INTERVALS)
