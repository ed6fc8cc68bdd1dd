# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action in front of the module `image`.

A build takes minutes. With a local connection, and as the user who runs Ansible, it is done inside the Ansible
process, which can say how far it is; elsewhere the module does it.
"""

from __future__ import annotations

import copy
import os

from ansible import constants as C
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.clachan.platform.plugins.module_utils.image_building import Failure, Images
from ansible_collections.clachan.platform.plugins.modules import image

display = Display()


class ActionModule(ActionBase):
    """`clachan.platform.image`."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        here = self._connection.transport in ("local", "ansible.builtin.local") and not self._play_context.become
        result.update(self._here() if here else self._execute_module(task_vars=task_vars))
        return result

    def _here(self):
        options = copy.deepcopy(image.OPTIONS)
        checked = ArgumentSpecValidator(options, **image.RULES).validate(dict(self._task.args))
        if checked.error_messages:
            return {"failed": True, "msg": "; ".join(checked.error_messages)}
        params = dict(dict.fromkeys(options), **checked.validated_parameters)
        before = os.umask(0o022)
        try:
            return Images(params, self._task.check_mode, self._say, self._variables()).run()
        except Failure as problem:
            return {"failed": True, "msg": str(problem)}
        finally:
            os.umask(before)

    def _variables(self):
        """The task's environment, and where this Ansible looks for collections and roles."""
        own = {}
        self._compute_environment_string(own)
        paths = {
            "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(C.COLLECTIONS_PATHS),
            "ANSIBLE_ROLES_PATH": os.pathsep.join(C.DEFAULT_ROLES_PATH),
        }
        return dict(os.environ, **paths, **own)

    def _say(self, text):
        display.display("  %s" % text)
