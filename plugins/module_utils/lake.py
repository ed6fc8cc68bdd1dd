# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lake's service, as modules reach it: HTTP and JSON, nothing of the lake's code."""

from __future__ import annotations

from urllib.parse import urlsplit

from ansible_collections.clachan.platform.plugins.module_utils.client import Address, Client, NotConfigured

LAKE = {
    "url": {"type": "str", "required": True},
    "token": {"type": "str", "required": True, "no_log": True},
    "ca": {"type": "path"},
}


class Lake(Client):
    """Calls of a lake. Every method raises ClientError's kinds and nothing else."""

    what, base = "lake", ""


def lake_for(params):
    """The Lake of a module's options; raises NotConfigured for what is no URL."""
    url = params["url"]
    if urlsplit(url).scheme not in ("https", "http") or not urlsplit(url).hostname:
        raise NotConfigured("lake's url: %r, expected http://HOST:PORT or https://HOST:PORT" % url)
    return Lake(Address(url, params["token"], params["ca"]))
