# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action in front of a module that works on a node as root.

When Ansible itself runs there as root, it does the module's work inside the Ansible process, which costs a tenth of a
process of its own. Elsewhere, and for options that are wrong, it runs the module.
"""

from __future__ import annotations

import json
import os

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase


class NodeAction(ActionBase):
    """Subclasses say which module: `MODULE` (its Python module, with OPTIONS, RULES, ERRORS and work)."""

    MODULE = None
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        params = self._params() if self._is_here() else None
        if params is None:
            return dict(result, **self._execute_module(task_vars=task_vars))
        before = os.umask(0o022)
        try:
            found = self.MODULE.work(params, self._task.check_mode)
        except self.MODULE.ERRORS as problem:
            return dict(result, failed=True, msg=str(problem))
        finally:
            os.umask(before)
        if not self._task.diff:
            found.pop("diff", None)
        return dict(result, **found)

    def _is_here(self):
        """Whether this process is on the machine, as the user that the module would be."""
        if self._connection.transport not in ("local", "ansible.builtin.local") or os.geteuid() != 0:
            return False
        # what a task's environment says is a process's own
        own = any(self._task.environment or [])
        return not own and (not self._connection.become or self._play_context.become_user in (None, "root"))

    def _params(self):
        """The options as the module would see them; None when they are wrong, as the module says it better."""
        checked = ArgumentSpecValidator(self.MODULE.OPTIONS, **self.MODULE.RULES).validate(_plain(self._task.args))
        return None if checked.error_messages else checked.validated_parameters


def _plain(arguments):
    """The options without Ansible's tags."""
    return json.loads(json.dumps(dict(arguments)))
