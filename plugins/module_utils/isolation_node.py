# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's members: their records, and the order in which the machine is made to agree with them.

`<home>/node/isolation/` has `<tap>.json` for each member, `settings.json` (the reserved networks), `rules.json` (see
isolation_table.py), `table.nft` (all of it as nft text: an operator's nftables.conf that begins with `flush ruleset`
can include it, so that one transaction takes and gives) and `.lock`.

A member comes: record, table, forwarding, tap, routes to other nodes. It goes: tap, record, table, those routes,
tracked connections. So a tap never lives without the table, nothing is forwarded before it, and after a kill at any
point the same call again, or `restore`, ends what was begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import time

from ansible_collections.clachan.platform.plugins.module_utils import isolation, isolation_rules
from ansible_collections.clachan.platform.plugins.module_utils.isolation import IsolationError
from ansible_collections.clachan.platform.plugins.module_utils.isolation_connections import forget
from ansible_collections.clachan.platform.plugins.module_utils.isolation_links import Links, taps
from ansible_collections.clachan.platform.plugins.module_utils.isolation_table import Table

WAIT_SECONDS = 60


class Node:
    """One node's isolation. Each verb returns what it changed (in check mode: would), as a list of texts."""

    def __init__(self, home, check=False):
        self.home, self.check = home, check
        self.directory = os.path.join(home, "node", "isolation")
        self.table = Table(home, self._path("rules.json"))
        self.links = Links()
        self.changes = []
        self.unreached = []
        """Addresses of other nodes to which no route could be made, each with why."""

    def present(self, member):
        uid = _uid(member)
        with self._locked():
            isolation.check_apart(member, self._members().values())
            self._keep(member["tap"] + ".json", member, "record %s" % member["tap"])
            members = dict(self._members(), **{member["tap"]: member})
            self._table(members)
            self._steps(self.links.forwarding())
            self._steps(self.links.present(member, uid, self.links.read().get(member["tap"])))
            self._ways(members, member)
        return self.changes

    def absent(self, tap):
        with self._locked():
            found, members = self.links.read(), self._members()
            gone = members.pop(tap, None)
            self._steps(self.links.absent(tap, found.get(tap)))
            self._remove(tap + ".json", "record %s" % tap)
            others = [name for name in taps(found) if name != tap]
            self._table(members, bool(members or others))
            self._ways(members)
            if gone and not self.check:
                forget([gone[key] for key in ("ipv4", "ipv6") if gone[key]])
        return self.changes

    def restore(self):
        """Everything that the records say, for instance after the machine booted."""
        with self._locked():
            members, found = self._members(), self.links.read()
            self._table(members, bool(members or taps(found)))
            if members:
                self._steps(self.links.forwarding())
            steps = []
            for tap, member in sorted(members.items()):
                steps += self.links.present(member, _uid(member), found.get(tap))
            self._steps(steps)
            self._ways(members)
        return self.changes

    def reserve(self, networks):
        """Set which networks no policy reaches."""
        for one in networks:
            isolation.network(one, "reserved network")
        with self._locked():
            self._keep("settings.json", {"format": isolation.FORMAT, "reserved": sorted(networks)}, "reserved networks")
            self._reserved = sorted(networks)

    def record(self, tap):
        """The member at the tap, as its record has it; None when there is none."""
        return self._read(tap + ".json")

    def look(self):
        """The members by tap, the tables in the kernel (None: not there), and the elements that they shall have."""
        members = self._members()
        return members, self.table.read(), isolation.elements(members.values(), self._networks())

    def strays(self):
        """Taps without a member: nothing passes them."""
        return sorted(set(taps(self.links.read())) - set(self._members()))

    def _table(self, members, needed=True):
        wanted = isolation.elements(members.values(), self._networks())
        live = self.table.read()
        text, rules = self.table.plan(live, wanted) if needed else (live and isolation_rules.removal(), False)
        if text:
            self.changes.append("table inet %s" % isolation_rules.NAME)
        if not self.check:
            self._write_table(wanted, needed)
            if text:
                self.table.apply(text)
            if rules:
                self._write("rules.json", _json(self.table.memory_of(self.table.read())))

    def _write_table(self, wanted, needed):
        if not needed:
            for name in ("table.nft", "rules.json"):
                if os.path.exists(self._path(name)):
                    os.unlink(self._path(name))
            return
        text = isolation_rules.whole(self.home, wanted).encode()
        if self._raw("table.nft") != text:
            self._write("table.nft", text)

    def _steps(self, steps):
        self.changes += [step[0] for step in steps]
        if not self.check:
            self.links.apply(steps)

    def _ways(self, members, newest=None):
        steps, unreached = self.links.ways(members.values(), newest)
        self.unreached += unreached
        self._steps(steps)

    def _networks(self):
        if getattr(self, "_reserved", None) is None:
            kept = self._read("settings.json")
            self._reserved = kept["reserved"] if kept else isolation.RESERVED
        return self._reserved

    def _members(self):
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return {}
        found = [name[: -len(".json")] for name in names if re.fullmatch(isolation.TAP + r"\.json", name)]
        return {tap: self._read(tap + ".json") for tap in found}

    def _path(self, name):
        return os.path.join(self.directory, name)

    def _raw(self, name):
        try:
            with open(self._path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _read(self, name):
        """A record or the settings, checked again as if given; None when there is no such file."""
        raw = self._raw(name)
        if raw is None:
            return None
        try:
            found = json.loads(raw)
            if found["format"] != isolation.FORMAT:
                raise ValueError
            return isolation.member(found) if "tap" in found else {"reserved": [str(one) for one in found["reserved"]]}
        except (ValueError, KeyError, TypeError):
            raise IsolationError(
                "file %s: not to be read, expected format %d" % (self._path(name), isolation.FORMAT)
            ) from None

    def _keep(self, name, value, what):
        data = _json(value)
        if self._raw(name) != data:
            self.changes.append(what)
            if not self.check:
                self._write(name, data)

    def _write(self, name, data):
        """Replace a file in one step; under the lock, so one name serves for what is not ready."""
        partial = self._path(".partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path(name))
        self._sync()

    def _remove(self, name, what):
        if self._raw(name) is not None:
            self.changes.append(what + " delete")
            if not self.check:
                os.unlink(self._path(name))
                self._sync()

    def _sync(self):
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def _locked(self):
        """Hold the members' lock; in check mode only when there is something to look at."""
        if self.check:
            yield
            return
        os.makedirs(self.directory, 0o700, exist_ok=True)
        with open(self._path(".lock"), "a", encoding="ascii") as handle:
            deadline = time.monotonic() + WAIT_SECONDS
            while not _try(handle):
                if time.monotonic() > deadline:
                    raise IsolationError(
                        "lock %s: taken for %d s, expected it to be free" % (handle.name, WAIT_SECONDS)
                    )
                time.sleep(0.02)
            yield


def _try(handle):
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _json(value):
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _uid(member):
    try:
        return pwd.getpwnam(member["user"]).pw_uid
    except KeyError:
        raise IsolationError(
            "user of tap %s: %s, expected a unix user of this machine" % (member["tap"], member["user"])
        ) from None
