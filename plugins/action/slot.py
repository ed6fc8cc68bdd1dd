# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of clachan.platform.slot: renders here, writes here when the slot is here, else sends one module call.

A module costs 0.2 to 0.3 s of CPU a host, this about 0.01 s; that is why the work is in module_utils.
"""

from __future__ import annotations

import base64
import json
import os

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

from ansible_collections.clachan.platform.plugins.module_utils.redaction import texts_of
from ansible_collections.clachan.platform.plugins.module_utils.slot_arguments import make_plan
from ansible_collections.clachan.platform.plugins.module_utils.slot_files import SlotError
from ansible_collections.clachan.platform.plugins.module_utils.slot_plan import apply_plan

OPTIONS = ("files", "directories", "services", "promises", "requests", "publish")
SOURCES = ("template", "content", "copy")


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        try:
            result.update(self._run(task_vars or {}))
        except SlotError as problem:
            result.update(failed=True, changed=False, msg=str(problem))
        return result

    def _run(self, task_vars):
        instance = task_vars.get("clachan_instance")
        if not instance:
            raise SlotError(
                "host %s: no clachan_instance, expected an instance of a platform" % task_vars["inventory_hostname"]
            )
        arguments = self._arguments(task_vars)
        plan = make_plan(arguments, str(instance["slot"]["directory"]), str(instance["slot"]["user"]))
        if self._task.diff:
            plan.update(difference=True, secrets=sorted(self._secrets(instance, arguments, task_vars)))
        if self._connection.transport == "local":
            return apply_plan(plan, self._task.check_mode)
        return self._send(plan, task_vars)

    def _send(self, plan, task_vars):
        # the plan has root's part and the slot's user's part; the module becomes the user where it must
        if self._connection.become:
            self._connection.become.set_option("become_user", "root")
        arguments = {"plan": base64.b64encode(json.dumps(plan).encode()).decode()}
        return self._execute_module("clachan.platform.slot", module_args=arguments, task_vars=task_vars)

    def _arguments(self, task_vars):
        """The task's options as plain values, its sources as bytes."""
        unknown = sorted(set(self._task.args) - set(OPTIONS))
        if unknown:
            raise SlotError("option %r: unknown, expected one of %s" % (unknown[0], ", ".join(OPTIONS)))
        arguments = _plain(dict(self._task.args))
        for option in OPTIONS:
            expected = list if option == "directories" else dict
            if arguments.get(option) is not None and not isinstance(arguments[option], expected):
                raise SlotError("option %s: expected a %s" % (option, "list" if expected is list else "mapping"))
        files = arguments.get("files") or {}
        arguments["files"] = {path: self._file(path, file, task_vars) for path, file in files.items()}
        arguments["directories"] = arguments.get("directories") or []
        return arguments

    def _file(self, path, file, task_vars):
        sources = [source for source in SOURCES if isinstance(file, dict) and source in file]
        if len(sources) != 1 or set(file) - {sources[0], "mode"}:
            raise SlotError("file %s: expected one of template, content, copy (and mode)" % path)
        read = {"template": self._render, "content": _content, "copy": self._read}[sources[0]]
        return {"content": read(path, file[sources[0]], task_vars), "mode": file.get("mode")}

    def _render(self, path, source, task_vars):
        source = self._find("templates", path, source)
        folders = [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), os.path.dirname(source)]
        search = [place for folder in folders for place in (os.path.join(folder, "templates"), folder)]
        templar = self._templar.copy_with_new_env(searchpath=search, available_variables=task_vars)
        # the role's own file is trusted; what tenants wrote comes in as values and stays text
        text = trust_as_template(self._loader.get_text_file_contents(source))
        value = templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True})
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        return _content(path, "" if value is None else _plain(value), task_vars)

    def _read(self, path, source, task_vars):
        with open(self._loader.get_real_file(self._find("files", path, source)), "rb") as opened:
            return opened.read()

    def _find(self, folder, path, source):
        try:
            return self._find_needle(folder, source)
        except AnsibleError as problem:
            raise SlotError("file %s: %s" % (path, problem)) from None

    def _secrets(self, instance, arguments, task_vars):
        """The texts that no difference may show: sealed parameters, and published values that the role calls secret."""
        published = arguments.get("publish") or {}
        values = [_plain(task_vars.get(name)) for name in instance.get("sealed", [])]
        values += [published[key] for key in self._secret_keys() if key in published]
        return {text for value in values for text in texts_of(value)}

    def _secret_keys(self):
        meta = os.path.join(self._task._role._role_path, "meta", "clachan.yml") if self._task._role else ""
        if not os.path.exists(meta):
            return []
        declared = self._loader.load_from_file(meta).get("published") or {}
        return [key for key, about in declared.items() if about.get("secret")]


def _plain(value):
    """A value without Ansible's tags, as JSON would carry it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as problem:
        raise SlotError("option: %s, expected what JSON can say" % problem) from None


def _content(path, text, task_vars):
    if not isinstance(text, str):
        raise SlotError("file %s: content is a %s, expected text (use to_json or string)" % (path, type(text).__name__))
    return text.encode("utf-8", "surrogateescape")
