# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of clachan.platform.lab_home: works here when the slot is here, else sends one module call.

The role of a lab runs as the slot's user; the archives are root's, as whom the agent runs this.
"""

from __future__ import annotations

import json

from ansible.plugins.action import ActionBase

from ansible_collections.clachan.platform.plugins.module_utils.lab_backup import ARGUMENTS, keep_backups
from ansible_collections.clachan.platform.plugins.module_utils.lab_disk import LabError


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENTS)
        if self._connection.transport != "local":
            if self._connection.become:
                self._connection.become.set_option("become_user", "root")
            return dict(result, **self._execute_module("clachan.platform.lab_home", options, task_vars=task_vars))
        try:
            # without Ansible's tags
            return dict(result, **keep_backups(json.loads(json.dumps(options)), self._task.check_mode))
        except LabError as problem:
            return dict(result, failed=True, changed=False, msg=str(problem))
