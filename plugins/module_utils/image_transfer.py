# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images fetched by their sha256 into a machine's store, from the controller or from another node's store.

A source answers `GET images/SHA256` with the manifest and `GET images/SHA256/disk` with the bytes, in ranges. What has
come stays in `<store>/.fetch-SHA256`, so a cut, a kill or another source goes on from there. Whoever fetches an image
holds its lock: another who wants it waits, and then finds it. Nobody is trusted: the bytes must have the sha256, the
disk must be one to boot from, and only then is it in the store.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import time
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from ansible.module_utils.urls import ConnectionError as UrlsConnectionError
from ansible.module_utils.urls import NoSSLError, Request, SSLValidationError

from ansible_collections.clachan.platform.plugins.module_utils.client import (
    ClientError,
    NotConfigured,
    find_address,
    find_node,
)
from ansible_collections.clachan.platform.plugins.module_utils.disk_image import DiskImageError, inspect
from ansible_collections.clachan.platform.plugins.module_utils.file_content import digest_of
from ansible_collections.clachan.platform.plugins.module_utils.image_store import (
    MANIFEST,
    ImageStoreError,
    check_manifest,
)

PARTIAL = ".fetch-"
BLOCK = 1 << 20
HOLE = bytes(BLOCK)
TRIES = 5
PAUSE, LONGEST_PAUSE = 0.5, 8
SILENCE_SECONDS = 30
LONGEST_MANIFEST = 4 << 20
FORGOTTEN_SECONDS = 7 * 86400
LOST = (URLError, OSError, UrlsConnectionError, http.client.HTTPException)
"""The connection broke, or there was none: worth another try."""


class TransferError(Exception):
    """Why an image could not be had, as "<what> <which>: <value>, expected <what>"."""


class Passing(Exception):
    """The same, but another try may do."""


class Source:
    """Where images are: the URL above `images/`, and who asks."""

    def __init__(self, url, token=None, ca=None, certificate=(None, None), proxy=False):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TransferError("source %s: expected a URL like http://HOST:PORT" % url)
        self.url = url.rstrip("/")
        self._request = Request(
            headers={"Authorization": "Bearer %s" % token} if token else {},
            use_proxy=proxy,
            http_agent="clachan-collection",
            follow_redirects="none",
            timeout=SILENCE_SECONDS,
            ca_path=ca,
            client_cert=certificate[0],
            client_key=certificate[1],
        )

    def __str__(self):
        return "source %s" % self.url

    def manifest(self, sha256):
        reply = self.open("images/%s" % sha256)
        with self.reading():
            raw = reply.read(LONGEST_MANIFEST)
        try:
            found = json.loads(raw)
            manifest = {key: found[key] for key in MANIFEST}
        except (ValueError, KeyError, TypeError) as problem:
            raise TransferError("%s: no manifest (%s), expected that of %s" % (self, problem, sha256)) from None
        check_manifest(manifest, "of %s" % self)
        if manifest["sha256"] != sha256 or manifest["size"] <= 0:
            raise TransferError("%s: manifest of another image, expected that of %s" % (self, sha256))
        return manifest

    def disk(self, sha256, start):
        """A readable from byte `start` on, or from 0, and which of both."""
        headers = {"Range": "bytes=%d-" % start} if start else {}
        reply = self.open("images/%s/disk" % sha256, headers)
        if reply.status != 206:
            return reply, 0
        said = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
        if said is None or int(said.group(1)) != start:
            raise TransferError("%s: another range than asked, expected bytes from %d" % (self, start))
        return reply, start

    def open(self, path, headers=None):
        with self.reading():
            return self._request.open("GET", "%s/%s" % (self.url, path), headers=headers or {}, use_netrc=False)

    @contextlib.contextmanager
    def reading(self):
        """Names what goes wrong with the connection."""
        try:
            yield
        except HTTPError as problem:
            kind = Passing if problem.code in (408, 429, 500, 502, 503, 504) else TransferError
            raise kind("%s: status %d, expected the image" % (self, problem.code)) from None
        except (SSLValidationError, NoSSLError) as problem:
            raise TransferError("%s: its certificate was refused (%s)" % (self, problem)) from None
        except LOST as problem:
            reason = getattr(problem, "reason", problem) or type(problem).__name__
            raise Passing("%s: connection lost (%s), expected all bytes" % (self, reason)) from None


def controller_source(home=None, url=None, token=None, ca=None):
    """The controller, asked as the user who is given, else as this machine's node, else as the home's user."""
    try:
        address = _address(home, url, token, ca)
    except ClientError as problem:
        raise TransferError(str(problem)) from None
    host = urlsplit(address.url).hostname or ""
    proxy = host not in ("localhost", "::1") and not host.startswith("127.")
    certificate = (address.certificate, address.key)
    return Source(address.url + "/api/v1", address.token, address.ca, certificate, proxy)


def _address(home, url, token, ca):
    if not url and not os.environ.get("CLACHAN_URL"):
        with contextlib.suppress(NotConfigured):
            return find_node(home)
    return find_address(url, token, ca, home)


def fetch(store, sha256, sources, maximum_bytes, say=lambda text: None):
    """Have an image in the store; gives its manifest and whether it was fetched. Raises TransferError."""
    store.folder(sha256)  # refuses what is no sha256 before it is a part of a path
    if store.get(sha256):
        return store.get(sha256), False
    with store.lock("fetch-" + sha256):
        found = store.get(sha256)
        if found:
            return found, False
        problems = []
        for source in sources:
            try:
                return Fetching(store, sha256, source, maximum_bytes, say).run(), True
            except (TransferError, ImageStoreError) as problem:
                problems.append(str(problem))
                say(str(problem))
        raise TransferError("image %s: %s" % (sha256, "; ".join(problems) or "no source, expected one"))


class Fetching:
    """One image from one source; a part that came from another one is gone on with."""

    def __init__(self, store, sha256, source, maximum_bytes, say):
        self.store, self.sha256, self.source, self.maximum, self.say = store, sha256, source, maximum_bytes, say
        self.path = os.path.join(store.path, PARTIAL + sha256)

    def run(self):
        manifest = self.patiently(lambda: self.source.manifest(self.sha256))
        if max(manifest["size"], manifest["virtual_size"]) > self.maximum:
            said = (self.sha256, max(manifest["size"], manifest["virtual_size"]), self.maximum)
            raise TransferError("image %s: %d bytes, expected at most %d" % said)
        forget(self.store)
        resumed = self.have() > 0
        try:
            self.download(manifest["size"])
            return self.keep(manifest)
        except WrongBytes:
            os.unlink(self.path)
            if not resumed:
                raise
            # the wrong ones may be those of an earlier try
            self.say("image %s: what was there is damaged; fetched anew" % self.sha256)
            self.download(manifest["size"])
            return self.keep(manifest)

    def download(self, size):
        if self.have() > size:
            os.unlink(self.path)
        self.check_space(size)
        try:
            self.patiently(lambda: self.go_on(size))
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.unlink(self.path)
            raise TransferError("store %s: full, expected room for %d bytes" % (self.store.path, size)) from None

    def patiently(self, work):
        """Try again after pauses; a try that brought bytes does not count."""
        failures, most = 0, self.have()
        while True:
            try:
                return work()
            except Passing as problem:
                failures = 1 if self.have() > most else failures + 1
                most = max(most, self.have())
                if failures >= TRIES:
                    raise TransferError(str(problem)) from None
                self.say("%s; again from byte %d" % (problem, self.have()))
                time.sleep(min(LONGEST_PAUSE, PAUSE * 2 ** (failures - 1)))

    def go_on(self, size):
        """Fetch what is missing, in one answer."""
        if self.have() == size:
            return
        reply, position = self.source.disk(self.sha256, self.have())
        with contextlib.closing(reply), open(self.path, "r+b" if position else "wb") as file:
            file.seek(position)
            while position < size:
                with self.source.reading():
                    block = reply.read(min(BLOCK, size - position))
                    if not block:
                        raise http.client.IncompleteRead(b"", size - position)
                position += len(block)
                if block == HOLE:
                    file.truncate(position)
                    file.seek(position)
                else:
                    file.write(block)

    def have(self):
        try:
            return os.path.getsize(self.path)
        except FileNotFoundError:
            return 0

    def check_space(self, size):
        status = os.statvfs(self.store.path)
        free, missing = status.f_bavail * status.f_frsize, size - self.have()
        if missing > free:
            raise TransferError("store %s: %d bytes free, expected %d" % (self.store.path, free, missing))

    def keep(self, manifest):
        """Into the store, when it is what it should be; qemu-img sees nothing whose sha256 is another."""
        found = digest_of(self.path)
        if found != self.sha256:
            raise WrongBytes("%s: sha256 of what came is %s, expected %s" % (self.source, found, self.sha256))
        try:
            disk = inspect(self.path, self.maximum, manifest["disk_format"])
            if disk["virtual_size"] != manifest["virtual_size"]:
                expected = (self.sha256, disk["virtual_size"], manifest["virtual_size"])
                raise DiskImageError("image %s: virtual size %d, expected %d as in its manifest" % expected)
        except DiskImageError as problem:
            os.unlink(self.path)
            raise TransferError(str(problem)) from None
        return self.store.add(self.path, manifest)


class WrongBytes(TransferError):
    """All bytes came, and they are others."""


def forget(store):
    """Remove parts of images that nobody went on with."""
    for name in os.listdir(store.path):
        path = os.path.join(store.path, name)
        if name.startswith(PARTIAL) and time.time() - os.stat(path).st_mtime > FORGOTTEN_SECONDS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
