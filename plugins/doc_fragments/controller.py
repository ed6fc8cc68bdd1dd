# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description:
      - The controller, as C(https://HOST:PORT).
      - Default is E(CLACHAN_URL), else the one in the credentials of O(home).
    type: str
  token:
    description:
      - Who asks. Default is E(CLACHAN_TOKEN), else the one in the credentials of O(home), which is only ever sent to
        the controller that it belongs to.
    type: str
  ca:
    description: File with the certificate of the controller's CA. Default is E(CLACHAN_CA), else as O(token).
    type: path
  home:
    description:
      - The platform's state directory, whose C(credentials.json) says where the controller is and who asks.
      - Default is E(CLACHAN_HOME), else C(/var/lib/clachan) for root, else C(~/.local/share/clachan).
    type: path
"""
