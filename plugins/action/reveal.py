# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of clachan.platform.reveal: puts the secrets of a play's hosts into the inventory in memory.

It runs as a loop over the hosts, in one process: the first turn asks for all of them, so there is one request and one
event in the audit. Each turn hands its host's values to Ansible as `add_host` does: not as facts, which a fact cache
would write to disk, and never marked trusted.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from ansible_collections.clachan.platform.plugins.module_utils.client import (
    Client,
    ClientError,
    NotConfigured,
    Refused,
    find_address,
)

_answers = {}


class ActionModule(ActionBase):
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("host", "hosts", "url", "token", "ca"))

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        host, hosts = self._task.args["host"], tuple(self._task.args["hosts"])
        if hosts not in _answers:
            try:
                _answers[hosts] = self._ask(hosts)
            except ClientError as problem:
                _answers[hosts] = None
                return dict(result, failed=True, msg=_explain(problem, hosts))
        elif _answers[hosts] is None:
            return dict(result, skipped=True, skip_reason="already refused")
        values = _answers[hosts].get(host, {})
        missing = _missing(task_vars["hostvars"][host]["clachan_instance"], values)
        if missing:
            return dict(
                result, failed=True, msg="host %s: the controller did not reveal %s" % (host, ", ".join(missing))
            )
        return dict(
            result, changed=False, _ansible_no_log=True, add_host={"host_name": host, "groups": [], "host_vars": values}
        )

    def _ask(self, hosts):
        """Host -> its secret variables."""
        given = [self._task.args.get(key) for key in ("url", "token", "ca")]
        client = Client(find_address(*given))
        return client.call("POST", "/inventory/reveal", body={"hosts": [str(host) for host in hosts]}).body["variables"]


def _missing(instance, values):
    """The secrets that are wanted and not there, and the variables that are there and not wanted."""
    sealed = set() if instance["state"] == "waiting" else set(instance["sealed"])
    return sorted(sealed.symmetric_difference(values) if sealed else values)


def _explain(problem, hosts):
    which = "secrets of %s" % (", ".join(hosts) if len(hosts) < 4 else "%d hosts" % len(hosts))
    if isinstance(problem, Refused) and problem.status == 403:
        return "%s: not revealed (%s), expected a user with the permission reveal" % (which, problem)
    if isinstance(problem, NotConfigured):
        return "%s: not revealed (%s)" % (which, problem)
    return "%s: not revealed, %s" % (which, problem)
