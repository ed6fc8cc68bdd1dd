# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description: The lake, as C(http://HOST:PORT). What the software C(clachan.platform.lake) publishes as its URL.
    type: str
    required: true
  token:
    description: The lake's token. What the software publishes as its token, or one that may do this.
    type: str
    required: true
  ca:
    description:
      - File with the certificate of a lake behind TLS, as the software publishes it, or with that of its CA. Default
        are the system's CAs.
    type: path
attributes:
  action_group:
    description: Use C(group/clachan.platform.lake) in C(module_defaults) to say url, token and ca once.
    support: full
    membership:
      - clachan.platform.lake
"""
