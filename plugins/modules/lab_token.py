#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_token
short_description: Keep a lab's kernels in a token of the lake that ends soon
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Has the lake make a token, and writes it into C(etc/lake-token) of the instance's slot, where kernels read it. While
    it was made for the same, and half of its life (at most an hour) is not over, nothing is done.
  - The lake is asked within the Ansible process, so O(token) is in no process and no file that the slot's user can
    read.
  - Where the lake does not answer, the token that is there stays, and a warning says so. Over SSH nothing is done, as
    only the node's own agent is sure to reach the lake.
options:
  url:
    description: The lake.
    type: str
    required: true
  token:
    description: A token of the lake with the scope C(admin).
    type: str
    required: true
  ca:
    description: The file with the lake's certificate; none for plain HTTP, or for one that the system knows.
    type: path
  scopes:
    description: What the new token may do, as in M(clachan.platform.lake_token).
    type: list
    elements: str
    required: true
  seconds:
    description: How long it is valid.
    type: int
    required: true
attributes:
  check_mode:
    description: Says whether a new one would be made.
    support: full
  diff_mode:
    description: What is written is secret.
    support: none
  platform:
    description: Target systems.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Keep the kernels in a token that ends soon
  clachan.platform.lab_token:
    url: "{{ lab_lake_url }}"
    token: "{{ lab_lake_token }}"
    scopes: [compute, 'ingest:*', write]
    seconds: 3600
"""

RETURN = r"""#"""
