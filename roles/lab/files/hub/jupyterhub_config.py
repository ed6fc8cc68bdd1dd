# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the hub; what differs from one to another stands in etc/hub.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SLOT = Path(os.environ["CLACHAN_SLOT"])
sys.path.insert(0, str(SLOT / "etc/hub"))
import hub_login  # noqa: E402
import hub_spawner  # noqa: E402

about = json.loads((SLOT / "etc/hub.json").read_text())
address, port = about["address"], about["port"]
c = get_config()  # type: ignore[name-defined]  # noqa: F821 - JupyterHub's  # pylint: disable=undefined-variable

c.JupyterHub.bind_url = f"{about['scheme']}://{address}:{port}"
c.JupyterHub.hub_bind_url = f"http://{address}:{port + 1}"
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = f"http://{address}:{port + 2}"
c.ConfigurableHTTPProxy.auth_token = (SLOT / "etc/proxy-token").read_text().strip()
# routes are looked after by the proxy, too; this is how soon a lost one is back
c.JupyterHub.proxy_check_interval = 30
# servers and proxy are no children of the hub: they go on without it
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False
c.JupyterHub.db_url = f"sqlite:///{SLOT}/var/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(SLOT / "var/cookie-secret")
c.JupyterHub.cookie_max_age_days = 1
c.JupyterHub.authenticator_class = hub_login.PlatformAuthenticator
c.JupyterHub.spawner_class = hub_spawner.PlaceSpawner
c.JupyterHub.template_vars = {
    "announcement_login": "Your name on the platform; the password is a token of yours, as clachan lab open makes one."
}
c.JupyterHub.trusted_downstream_ips = [address, "127.0.0.1"]
c.JupyterHub.services = [{"name": "culler", "api_token": (SLOT / "etc/culler-token").read_text().strip()}]
c.JupyterHub.load_roles = [
    {
        "name": "culler",
        "services": ["culler"],
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
    }
]
c.JupyterHub.tornado_settings = {
    "cookie_options": {"secure": about["scheme"] == "https"},
    "headers": {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Content-Security-Policy": "frame-ancestors 'none'",
    },
}
c.Authenticator.auth_refresh_age = 60
c.Authenticator.refresh_pre_spawn = True
c.Authenticator.enable_auth_state = False
c.Spawner.default_url = "/lab"
c.Spawner.start_timeout = 60
c.Spawner.http_timeout = 60
c.Spawner.poll_interval = 30
