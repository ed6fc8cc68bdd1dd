# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seed of a VM: a NoCloud disk, ISO 9660 labelled `cidata`, made in Python.

It has three files, which cloud-init and the small program of our own images both read: `meta-data` (instance-id,
local-hostname), `user-data` (`#cloud-config`, then JSON, which is YAML) and `network-config` (version 2). The same
documents give the same bytes: all dates are DATE, and nothing else comes from the time or the machine.
"""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import json
import os
import re
import time
from contextlib import contextmanager

from ansible_collections.clachan.platform.plugins.module_utils.domain import MAC
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError, library

LABEL = "cidata"
FILES = ("meta-data", "network-config", "user-data")
DATE = 1577836800.0  # 2020-01-01, in UTC
SECTOR = 2048
LARGEST = 8 * 1024 * 1024
HOSTNAME = r"[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?)*"
LONGEST_HOSTNAME = 64
JOIN_FILE = "/var/lib/clachan/node/join.json"
EMPTY = "#cloud-config\n{}\n"


def pycdlib():
    return library("pycdlib", "python3-pycdlib")


def documents(params, key):
    """The seed's files, name to text. key: the host key (private, public), or None.

    Raises HypervisorError for what is not sane.
    """
    join = params["join"] and _join_entry(params["join"])
    user = {"ssh_authorized_keys": [_line("authorized_keys", one) for one in params["authorized_keys"]]}
    if key:
        user["ssh_keys"] = {"ed25519_private": key[0], "ed25519_public": key[1]}
    entries = [_entry(one) for one in params["files"]] + ([join] if join else [])
    if entries:
        user["write_files"] = entries
    identity = _identity(params["instance_id"])
    if join:
        # another token is to be taken in at the next boot, although the rest is the same
        identity += "-" + hashlib.sha256(join["content"].encode()).hexdigest()[:8]
    return {
        "meta-data": _text({"instance-id": identity, "local-hostname": _hostname(params["hostname"])}),
        "network-config": _text({"version": 2, "ethernets": _ethernets(params["interfaces"])}),
        "user-data": "#cloud-config\n" + _text(user),
    }


def emptied(texts):
    """The files without anything that is secret, for a VM that has applied them: the same instance-id."""
    return dict(texts, **{"user-data": EMPTY})


def _text(document):
    return json.dumps(document, sort_keys=True, indent=1) + "\n"


def _identity(value):
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
        raise HypervisorError("instance_id %r: expected at most 128 letters, digits and . _ -" % value)
    return value


def _hostname(value):
    if not re.fullmatch(HOSTNAME, value) or len(value) > LONGEST_HOSTNAME:
        raise HypervisorError(
            "hostname %r: expected at most %d lower-case letters, digits, - and _ in parts joined by dots"
            % (value, LONGEST_HOSTNAME)
        )
    return value


def _line(what, value):
    if not value.strip() or not value.isprintable():
        raise HypervisorError("%s %r: expected one line" % (what, value))
    return value.strip()


def _entry(options):
    path, permissions = options["path"], options["permissions"]
    if not path.startswith("/") or os.path.normpath(path) != path or not path.isprintable():
        raise HypervisorError("files.path %r: expected an absolute path without '..'" % path)
    if not re.fullmatch(r"[0-7]{4}", permissions):
        raise HypervisorError("files.permissions %r: expected four octal digits" % permissions)
    content = base64.b64encode(options["content"].encode("utf-8", "surrogateescape")).decode()
    return {"path": path, "permissions": permissions, "encoding": "b64", "content": content}


def _join_entry(options):
    """The file by which the VM joins: the token comes from a file, so that it is in no variable of a playbook."""
    try:
        with open(options["token_file"], encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        raise HypervisorError("join.token_file %s: nothing there, expected a token" % options["token_file"]) from None
    except ValueError:
        found = {}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("node", "token")):
        raise HypervisorError("join.token_file %s: expected JSON with node and token" % options["token_file"])
    content = json.dumps({"url": options["url"], "node": found["node"], "token": found["token"]}, sort_keys=True)
    return _entry({"path": JOIN_FILE, "permissions": "0600", "content": content + "\n"})


def _ethernets(interfaces):
    return {"net%d" % number: _ethernet(one) for number, one in enumerate(interfaces)}


def _ethernet(options):
    mac = options["mac"].lower()
    if not re.fullmatch(MAC, mac):
        raise HypervisorError("interfaces.mac %r: expected a unicast address like 52:54:00:12:34:56" % options["mac"])
    addresses = [str(_parsed(ipaddress.ip_interface, "interfaces.addresses", one)) for one in options["addresses"]]
    gateways = [_parsed(ipaddress.ip_address, "interfaces.gateways", one) for one in options["gateways"]]
    servers = [str(_parsed(ipaddress.ip_address, "interfaces.nameservers", one)) for one in options["nameservers"]]
    found = {
        "match": {"macaddress": mac},
        "addresses": addresses,
        # on-link: the gateway of a routed link is in none of the VM's own networks
        "routes": [
            {"to": "::/0" if one.version == 6 else "0.0.0.0/0", "via": str(one), "on-link": True} for one in gateways
        ],
        "accept-ra": False,
    }
    return dict(found, nameservers={"addresses": servers}) if servers else found


def _parsed(kind, what, text):
    try:
        return kind(text)
    except ValueError:
        raise HypervisorError("%s %r: expected an IP address" % (what, text)) from None


def image(texts):
    """The bytes of the disk with these files."""
    if sum(map(len, texts.values())) > LARGEST:
        raise HypervisorError("seed: files of more than %d bytes, expected less" % LARGEST)
    binding, out = pycdlib(), io.BytesIO()
    with _standing_clock():
        iso = binding.PyCdlib()
        iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
        for number, name in enumerate(FILES):
            data = texts[name].encode("utf-8", "surrogatepass")
            iso.add_fp(io.BytesIO(data), len(data), "/F%d.;1" % number, rr_name=name, joliet_path="/" + name)
        iso.write_fp(out)
        iso.close()
    return out.getvalue()


@contextmanager
def _standing_clock():
    """pycdlib writes the present time in the machine's time zone and cannot be told another."""
    clock, zone = time.time, os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    time.time = lambda: DATE
    try:
        yield
    finally:
        time.time = clock
        os.environ.pop("TZ")
        if zone is not None:
            os.environ["TZ"] = zone
        time.tzset()


def files_of(data):
    """The seed's files in the bytes of a disk, name to text; {} when it is none of ours, or only half written."""
    binding, found = pycdlib(), {}
    iso = binding.PyCdlib()
    try:
        iso.open_fp(io.BytesIO(data))
        for name in FILES:
            out = io.BytesIO()
            iso.get_file_from_iso_fp(out, rr_path="/" + name)
            found[name] = out.getvalue().decode("utf-8")
        iso.close()
    except Exception:  # pycdlib raises whatever broken bytes make of it
        return {}
    return found


def shown(data):
    """What a difference may say of a disk's bytes; {} for none."""
    if data is None:
        return {}
    texts = files_of(data)
    try:
        meta = json.loads(texts["meta-data"])
        network = json.loads(texts["network-config"])["ethernets"]
        user = json.loads(texts["user-data"].partition("\n")[2])
    except (KeyError, ValueError):
        return {"sha256": hashlib.sha256(data).hexdigest()}
    return {
        "instance_id": meta.get("instance-id"),
        "hostname": meta.get("local-hostname"),
        "interfaces": network,
        "files": [entry.get("path") for entry in user.get("write_files", [])],
        "authorized_keys": user.get("ssh_authorized_keys", []),
        # of all of it with the private key, so that no short secret can be tried
        "sha256": hashlib.sha256(data).hexdigest(),
    }
