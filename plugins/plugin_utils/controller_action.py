# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action in front of a module that speaks with the controller.

With a local connection it does the module's work inside the Ansible process: so it can say how it goes while it waits,
which a module cannot, and it costs a tenth. Elsewhere it runs the module.
"""

from __future__ import annotations

import os

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.clachan.platform.plugins.module_utils.controller import specification, work

display = Display()


class ControllerAction(ActionBase):
    """Subclasses say which module: `MODULE` (its Python module, with OPTIONS, RULES and make) and `NAME`."""

    MODULE = None
    NAME = ""
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        if self._connection.transport == "local":
            result.update(self._here())
        else:
            result.update(self._execute_module("clachan.platform.%s" % self.NAME, task_vars=task_vars))
        if not result.get("failed") and self.is_secret():
            result["_ansible_no_log"] = True
        return result

    def is_secret(self):
        """Whether a result that is no failure holds a secret."""
        return False

    def _here(self):
        options = specification(self.MODULE.OPTIONS)
        checked = ArgumentSpecValidator(options, **self.MODULE.RULES).validate(dict(self._task.args))
        if checked.error_messages:
            return {"failed": True, "msg": "; ".join(checked.error_messages)}
        params = dict.fromkeys(options)
        params.update(checked.validated_parameters)
        return work(self.MODULE.make, params, self._task.check_mode, self._say, self._environment())

    def _say(self, text):
        display.display("  %s" % text)

    def _environment(self):
        own = {}
        self._compute_environment_string(own)
        return dict(os.environ, **own)
