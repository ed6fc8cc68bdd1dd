#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: slot
short_description: Write an instance's files, services, promises, child requests and published values
author:
  - The Clachan maintainers (@clachan)
description:
  - The one task by which a software role says what shall be in the slot of its instance. The node's agent reads it
    after the run, keeps the services running, checks the promises, declares the requests and reports what is published.
  - The host must be an instance of a platform's inventory, which says where its slot is.
  - What is below C(etc/) belongs to root and can be read by the slot's user (mode V(0640)); what is below C(var/)
    belongs to the slot's user and is written as that user. Links are never followed, only regular files are replaced,
    and each as a whole.
  - With a local connection the work is done inside the Ansible process; else one module call does the same there.
options:
  files:
    description:
      - Files by path, relative to the slot, below C(etc/) or C(var/).
      - Each has one of C(template) (a file of the role's C(templates/)), C(content) (text) or C(copy) (a file of the
        role's C(files/)), and may have C(mode) (octal digits in quotes, default V("0640")).
      - Values in a template are what tenants wrote. They are never templates themselves, but they may hold newlines or
        quotes, so write them through C(to_json) or whatever the file's format needs.
      - Files that are not named are left alone.
    type: dict
    default: {}
  directories:
    description: Directories that shall exist, relative to the slot, below C(etc/) or C(var/); mode V(0750).
    type: list
    elements: str
    default: []
  services:
    description:
      - Processes to keep running as the slot's user, by name. Each has C(command) (list), and may have C(environment)
        (texts by variable), C(directory) (default C(var)), C(restart_on) (list of files in the slot; the service is
        restarted when the content of one changed), C(stop_seconds) and C(open_files).
      - Numbers in C(command) and C(environment) are written as text.
      - A task that has any of O(services), O(promises), O(requests) and O(publish) declares all four completely. What
        is not named, or was named by an earlier converge, is removed.
    type: dict
  promises:
    description:
      - Checks that must pass, by name. Each has C(kind), one of C(process) (with C(service)), C(tcp) (C(address),
        C(port)), C(http) (C(url), C(status), C(contains)), C(command) (C(command)), C(file_age) (C(path),
        C(max_seconds)), C(disk_space) (C(path), C(min_free_mib)) and C(children) (every child in O(requests) is in the
        state that it is wanted in).
      - All may have C(title), C(every_seconds) and C(timeout_seconds).
    type: dict
  requests:
    description:
      - Child instances, by name. Each has C(software), and may have C(digest), C(type), C(parameters), C(placement),
        C(state) and C(title).
    type: dict
  publish:
    description: Values by name for the user, the parent and references; texts, numbers or booleans.
    type: dict
  plan:
    description: What is to be written, as the action made it of the other options. Never give it.
    type: str
attributes:
  check_mode:
    description: Says what would change, changing nothing.
    support: full
  diff_mode:
    description: Shows how files differ. Values of secret parameters and secret published values read C(<secret>).
    support: full
  platform:
    description: Target systems.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Describe the slot
  clachan.platform.slot:
    files:
      etc/web.ini:
        template: web.ini.j2
      etc/token:
        content: "{{ web_token }}"
        mode: "0440"
    directories:
      - var/spool
    services:
      web:
        command:
          - /usr/bin/python3
          - -m
          - http.server
          - "{{ clachan_instance.slot.ports.first }}"
          - --bind
          - "{{ clachan_instance.slot.addresses.ipv4 }}"
        restart_on:
          - etc/web.ini
    promises:
      up:
        kind: tcp
        address: "{{ clachan_instance.slot.addresses.ipv4 }}"
        port: "{{ clachan_instance.slot.ports.first }}"
    publish:
      url: "http://{{ clachan_instance.slot.addresses.ipv4 }}:{{ clachan_instance.slot.ports.first }}"
"""

RETURN = r"""
paths:
  description: What was changed, relative to the slot; a directory ends in C(/).
  returned: success
  type: list
  elements: str
  sample: [etc/web.ini, etc/services.d/web.json]
"""

import base64
import json

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clachan.platform.plugins.module_utils.slot_files import SlotError
from ansible_collections.clachan.platform.plugins.module_utils.slot_plan import apply_plan


def read_plan(text):
    try:
        return json.loads(base64.b64decode(text or ""))
    except ValueError:
        raise SlotError("plan: none that can be read, expected the one that the action of this module makes") from None


def main():
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "default": {}},
            "directories": {"type": "list", "elements": "str", "default": []},
            "services": {"type": "dict"},
            "promises": {"type": "dict"},
            "requests": {"type": "dict"},
            "publish": {"type": "dict"},
            # one opaque text, so that no part of it is logged anywhere
            "plan": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**apply_plan(read_plan(module.params["plan"]), module.check_mode))
    except SlotError as problem:
        module.fail_json(msg=str(problem))


if __name__ == "__main__":
    main()
