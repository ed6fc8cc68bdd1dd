# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module that speaks with the controller has: its options, its client, its one place of failure."""

from __future__ import annotations

import copy

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.client import Client, ClientError, Refused, find_address

CONTROLLER = {
    "url": {"type": "str"},
    "token": {"type": "str", "no_log": True},
    "ca": {"type": "path"},
    "home": {"type": "path"},
}


class Failure(Exception):
    """A task's failure; `more` are further keys of its result."""

    def __init__(self, message, **more):
        self.more = more
        super().__init__(message)


def client_for(params, environment=None):
    return Client(find_address(params["url"], params["token"], params["ca"], params["home"], environment))


def work(make, params, check_mode, say, environment=None):
    """The result of a task, also when it failed. `make(client, params, check_mode, say)` gives something with `run()`;
    `say(text)` tells the user how it goes."""
    try:
        return make(client_for(params, environment), params, check_mode, say).run()
    except Refused as problem:
        said = {"code": problem.code, "field": problem.field, "status": problem.status}
        return {"failed": True, "msg": str(problem), **said}
    except ClientError as problem:
        return {"failed": True, "msg": str(problem)}
    except Failure as problem:
        return dict(problem.more, failed=True, msg=str(problem))


def specification(options):
    """The argument specification of a module with these options: a copy, as Ansible writes into what it is given."""
    return copy.deepcopy(dict(CONTROLLER, **options))


def run_module(make, options, **rules):
    """`main()` of a module. Options may hold secrets of any name (parameters), so none is logged or repeated."""
    module = AnsibleModule(argument_spec=specification(options), supports_check_mode=True, no_log=True, **rules)
    result = work(make, module.params, module.check_mode, module.debug)
    result["invocation"] = {}
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)
