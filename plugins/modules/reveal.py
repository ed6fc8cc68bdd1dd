#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: reveal
short_description: Fetch the secret parameters of instances for a push
author:
  - The Clachan maintainers (@clachan)
description:
  - Asks the controller for the secrets of a play's hosts, which read C(<secret>) in the inventory, and puts them into
    the inventory in memory. It is for the playbook C(clachan.platform.converge).
  - The user needs the permission C(reveal); each use is an event in the platform's audit.
  - It runs where Ansible runs. Run it in a loop over the hosts, once.
options:
  host:
    description: Whose secrets to put into the inventory in this turn of the loop.
    type: str
    required: true
  hosts:
    description: All hosts of the loop; the first turn asks for all of them at once.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - clachan.platform.controller
attributes:
  check_mode:
    description: Reveals all the same, so that the tasks after it can be checked.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  platform:
    description: Target systems.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Reveal secret parameters
  clachan.platform.reveal:
    host: "{{ item }}"
    hosts: "{{ ansible_play_hosts }}"
  loop: "{{ ansible_play_hosts }}"
  run_once: true
  changed_when: false
"""

RETURN = r"""#"""
