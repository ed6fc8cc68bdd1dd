# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lake's service, as modules reach it: HTTP and JSON, nothing of the lake's code."""

from __future__ import annotations

from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.client import (
    Address,
    Client,
    ClientError,
    NotConfigured,
    Refused,
)

LAKE = {
    "url": {"type": "str", "required": True},
    "token": {"type": "str", "required": True, "no_log": True},
    "ca": {"type": "path"},
}


class Lake(Client):
    """Calls of a lake. Every method raises ClientError's kinds and nothing else."""

    what, base = "lake", ""


def lake_for(params):
    """The Lake of a module's options; raises NotConfigured for what is no URL."""
    url = params["url"]
    if urlsplit(url).scheme not in ("https", "http") or not urlsplit(url).hostname:
        raise NotConfigured("lake's url: %r, expected http://HOST:PORT or https://HOST:PORT" % url)
    return Lake(Address(url, params["token"], params["ca"]))


class Declared:
    """What a lake has at a path under a name: declared by PUT, deleted by DELETE. `told` are the keys that are declared
    of it, which is what differences are made of."""

    def __init__(self, lake, path, query, told, check_mode):
        self._lake, self._path, self._query, self._told, self._check = lake, path, query, told, check_mode

    def find(self):
        return self._lake.find(self._path, query=self._query)

    def present(self, before, declaration):
        """What it is then. The lake says what would become of it, or why not, before it is asked to do it."""
        after = self._declare(declaration, dict(self._query, dry_run="1"))
        if not self._check and self.told(before) != self.told(after):
            after = self._declare(declaration, self._query)
        return after

    def absent(self, before):
        """None, which is what it is then."""
        if before is not None and not self._check:
            try:
                self._lake.call("DELETE", self._path, query=self._query)
            except Refused as problem:
                if problem.status != 404:  # somebody else was faster
                    raise

    def difference(self, before, after):
        return {"before": self.told(before), "after": self.told(after)}

    def told(self, found):
        return {key: found[key] for key in self._told if key in found} if found else {}

    def _declare(self, declaration, query):
        return self._lake.call("PUT", self._path, body=declaration, query=query).body


def run_module(make, options):
    """The main() of a lake's module: `make(lake, params, check_mode).run()` gives its result."""
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    try:
        module.exit_json(**make(lake_for(module.params), module.params, module.check_mode).run())
    except Refused as problem:
        module.fail_json(msg=str(problem), code=problem.code, field=problem.field, status=problem.status)
    except ClientError as problem:
        module.fail_json(msg=str(problem))
