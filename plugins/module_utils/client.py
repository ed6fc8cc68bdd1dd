# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one thin client through which plugins reach the controller: HTTP and JSON, nothing of the controller's code.

Where the controller is and who asks comes, in this order, from options, from the environment (`CLACHAN_URL`,
`CLACHAN_TOKEN`, `CLACHAN_CA`), from `credentials.json` in the platform's home. The stored token is only ever sent to
the URL that it was stored with.

A node speaks with its certificate instead of a token (`find_node`): what its own agent has, in the node's home.
"""

from __future__ import annotations

import json
import os
import ssl
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit

from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import NoSSLError, Request, SSLValidationError

from ansible_collections.clachan.platform.plugins.module_utils.home import home

LONGEST_ANSWER = 64 * 1024 * 1024
PAGE = 500


class ClientError(Exception):
    """Anything that keeps an answer of the controller away; `str()` is for the user."""


class NotConfigured(ClientError):
    """Nobody said where the controller is, or who asks."""


class Unreachable(ClientError):
    """No answer: the controller is down, or not there."""


class Refused(ClientError):
    """The controller answered with an error. `status` is HTTP's; the rest is the error envelope's."""

    def __init__(self, status, code, message, field=None, hint=None):
        self.status, self.code, self.message, self.field, self.hint = status, code, message, field, hint
        super().__init__(message if not hint else "%s (%s)" % (message, hint))


class Address:
    """Where the controller is and who asks: `url` (no trailing slash), `token`, `ca` (a file; None: the system's).

    Instead of a token, `certificate` and `key` (files)."""

    def __init__(self, url, token, ca, certificate=None, key=None):
        self.url, self.token, self.ca = url.rstrip("/"), token, ca
        self.certificate, self.key = certificate, key


def find_address(url=None, token=None, ca=None, directory=None, environment=None):
    """The Address from options, environment, stored credentials; raises NotConfigured, which says what is missing."""
    environment = os.environ if environment is None else environment
    url = url or environment.get("CLACHAN_URL")
    token = token or environment.get("CLACHAN_TOKEN")
    ca = ca or environment.get("CLACHAN_CA")
    if not url:
        stored = _stored(os.path.join(home(directory or environment.get("CLACHAN_HOME")), "credentials.json"))
        url, token, ca = stored["url"], token or stored["token"], ca or stored.get("ca_file")
    if urlsplit(url).scheme not in ("https", "http") or not urlsplit(url).hostname:
        raise NotConfigured("controller's url: %r, expected https://HOST:PORT" % url)
    if not token:
        raise NotConfigured("token for %s: none, expected the option token or CLACHAN_TOKEN" % url)
    return Address(url, token, ca)


def find_node(directory=None, environment=None):
    """The Address of the node that this machine is, from its agent's files; raises NotConfigured."""
    environment = os.environ if environment is None else environment
    node = os.path.join(home(directory or environment.get("CLACHAN_HOME")), "node")
    ca, certificate, key = (os.path.join(node, name) for name in ("ca.pem", "cert.pem", "key.pem"))
    try:
        with open(os.path.join(node, "config.json"), encoding="utf-8") as source:
            url = json.load(source)["controller_url"]
        for path in (ca, certificate, key):
            with open(path, "rb"):
                pass
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise NotConfigured("node in %s: %s, expected one that has joined" % (node, problem)) from None
    return Address(url, None, ca, certificate, key)


def _stored(path):
    try:
        with open(path, encoding="utf-8") as source:
            found = json.load(source)
    except FileNotFoundError:
        raise NotConfigured(
            "controller: not known, expected the option url, CLACHAN_URL or the file %s" % path
        ) from None
    except (OSError, ValueError) as problem:
        raise NotConfigured("credentials %s: %s, expected a readable JSON file" % (path, problem)) from None
    if not isinstance(found, dict) or not isinstance(found.get("url"), str) or not isinstance(found.get("token"), str):
        raise NotConfigured("credentials %s: no url or no token, expected both" % path)
    return found


class Answer:
    """`status`, `etag` (or None), `headers` (lower-case names), `body` (parsed JSON; None: not modified, or empty)."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.etag = headers.get("etag")


class Client:
    """Calls of `/api/v1`. Every method raises ClientError's kinds and nothing else."""

    what, base = "controller", "/api/v1"

    def __init__(self, address, timeout=30):
        self.address, self.timeout = address, timeout
        loopback = urlsplit(address.url).hostname in ("localhost", "::1") or urlsplit(address.url).hostname.startswith(
            "127."
        )
        headers = {"Accept": "application/json"}
        if address.token:
            headers["Authorization"] = "Bearer %s" % address.token
        self._request = Request(
            headers=headers,
            use_proxy=not loopback,
            http_agent="clachan-collection",
            follow_redirects="none",
            ca_path=address.ca,
            client_cert=address.certificate,
            client_key=address.key,
        )

    def call(self, method, path, body=None, query=None, etag=None, wait=None):
        """One call; `path` below `base`. With `etag` (and `wait` in seconds, a long poll) the answer may be 304."""
        url = "%s%s%s" % (self.address.url, self.base, path)
        pairs = [(key, value) for key, value in (query or {}).items() if value is not None]
        if pairs:
            url += "?" + urlencode(pairs)
        headers = {}
        if etag:
            headers["If-None-Match"] = etag
        if wait:
            headers["Prefer"] = "wait=%d" % wait
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        return self._open(method, url, data, headers, self.timeout + (wait or 0))

    def get(self, path, **more):
        return self.call("GET", path, **more).body

    def items(self, path, query=None):
        """Every item of a list, page after page."""
        found, query = [], dict(query or {}, limit=PAGE)
        while True:
            page = self.get(path, query=query)
            found += page["items"]
            if not page.get("cursor"):
                return found
            query["cursor"] = page["cursor"]

    def find(self, path, **more):
        """What is there, or None when there is nothing (404)."""
        try:
            return self.get(path, **more)
        except Refused as problem:
            if problem.status == 404:
                return None
            raise

    def _open(self, method, url, data, headers, timeout):
        try:
            reply = self._request.open(method, url, data=data, headers=headers, timeout=timeout, use_netrc=False)
            return _answer(self.what, reply.status, reply.headers, reply.read(LONGEST_ANSWER + 1))
        except HTTPError as problem:
            if problem.code == 304:
                return Answer(304, _lower(problem.headers), None)
            raise _refused(self.what, problem) from None
        except (URLError, OSError, UrlsConnectionError, SSLValidationError, NoSSLError) as problem:
            raise self._unreachable(problem) from None

    def _unreachable(self, problem):
        reason = getattr(problem, "reason", problem)
        if isinstance(reason, ssl.SSLError) or isinstance(problem, (SSLValidationError, NoSSLError)):
            return ClientError(
                "%s %s: its certificate was refused (%s), expected one of the CA %s"
                % (self.what, self.address.url, reason, self.address.ca or "of the system")
            )
        if isinstance(reason, FileNotFoundError) and self.address.ca:
            return NotConfigured("CA file %s: not found, expected the %s's CA" % (self.address.ca, self.what))
        return Unreachable("%s %s: no answer (%s)" % (self.what, self.address.url, reason))


def segment(text):
    """One part of a URL's path."""
    return quote(text, safe="")


def _lower(headers):
    return {key.lower(): value for key, value in headers.items()}


def _answer(what, status, headers, raw):
    if len(raw) > LONGEST_ANSWER:
        raise ClientError("answer: longer than %d bytes" % LONGEST_ANSWER)
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        raise ClientError("answer: not JSON, expected the %s's (is the url right?)" % what) from None
    return Answer(status, _lower(headers), body)


def _refused(what, problem):
    """The Refused of an HTTPError: from the error envelope, or from what little HTTP says."""
    try:
        error = json.loads(problem.read(LONGEST_ANSWER))["error"]
        return Refused(problem.code, error["code"], error["message"], error.get("field"), error.get("hint"))
    except (ValueError, KeyError, TypeError, OSError):
        return Refused(problem.code, "unknown", "%s answered %s %s" % (what, problem.code, problem.reason))
