# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The root file system that images of Debian 12 begin with, made by mmdebstrap from the machine's own apt sources."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil

from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError, require, run
from ansible_collections.clachan.platform.plugins.module_utils.image_recipe import tree_digest
from ansible_collections.clachan.platform.plugins.module_utils.image_tree import UNSHARE

SUITE = "bookworm"
PACKAGES = [
    "ca-certificates",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "nftables",
    "openssh-server",
    "python3",
    "python3-apt",
    "python3-venv",
    "qemu-guest-agent",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
]
ENABLED = ["clachan-seed.service", "ssh.service", "systemd-networkd.service"]
MASKED = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
]
APT_OPTIONS = ['Acquire::Languages "none"']
DPKG_OPTIONS = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
]
SUITES = re.compile(r"\b%s(-updates|-security)?\b(?!-)" % SUITE)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
USUAL = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: {keyring}

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: {keyring}
""".format(keyring=KEYRING)
HOST_APT = ("Acquire::http", "Acquire::https", "Acquire::Check-Date", "Acquire::Check-Valid-Until")
EDITED = "etc/initramfs-tools"
"""Of the guest's own files, what must be there before the kernel is installed."""


def debian_sources(folder="/etc/apt"):
    """The machine's apt sources of Debian 12 as (one-line form, deb822 form); Debian's own when it has none."""
    stanzas = [text for path in sorted(glob.glob(folder + "/sources.list.d/*.sources")) for text in _stanzas(path)]
    listed = [folder + "/sources.list", *sorted(glob.glob(folder + "/sources.list.d/*.list"))]
    lines = [line for path in listed if os.path.exists(path) for line in _lines(path)]
    if not stanzas and not lines:
        return "", USUAL
    return "".join(line + "\n" for line in lines), "\n\n".join(stanzas) + ("\n" if stanzas else "")


def _stanzas(path):
    kept = []
    with open(path, encoding="utf-8") as file:
        stanzas = re.split(r"\n\s*\n", file.read())
    for stanza in stanzas:
        fields = [line for line in stanza.splitlines() if line and not line.startswith("#")]
        suites = next((line for line in fields if line.startswith("Suites:")), "")
        ours = [word for word in suites.split()[1:] if SUITES.fullmatch(word)]
        if ours and "Enabled: no" not in fields:
            wanted = "Suites: " + " ".join(ours)
            kept.append("\n".join(wanted if line == suites else line for line in fields))
    return kept


def _lines(path):
    kept = []
    with open(path, encoding="utf-8") as file:
        for line in file.read().splitlines():
            words = re.sub(r"\[.*?\]", "", line).split()
            if len(words) > 2 and words[0] == "deb" and SUITES.fullmatch(words[2]):
                kept.append(line)
    return kept


def without_passwords(text):
    """Sources as they may stand in an image."""
    return re.sub(r"(://)[^/\s@]*@", r"\1", text)


def host_apt_options():
    """The machine's proxies and its view of dates, which hold for the build and not for the image."""
    if shutil.which("apt-config") is None:
        return []
    dumped = run(["apt-config", "dump"]).splitlines()
    return [line.rstrip(";") for line in dumped if line.startswith(HOST_APT) and not line.endswith('"";')]


def base_digest(guest):
    """What identifies the root file system; guest: the folder with the files that go into it."""
    parts = [SUITE, PACKAGES, ENABLED, MASKED, APT_OPTIONS, DPKG_OPTIONS, debian_sources(), tree_digest(guest)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make_base(root, folder, guest):
    """Make the root file system `root`; folder: for its sources, removed with the work."""
    require("mmdebstrap")
    if not os.path.exists(KEYRING):
        raise BuildError("file %s: missing, expected it (Debian: debian-archive-keyring)" % KEYRING)
    listed = _write_sources(folder)
    command = [*UNSHARE, "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--include=" + ",".join(PACKAGES)]
    command += ["--aptopt=" + option for option in APT_OPTIONS + host_apt_options()]
    command += ["--dpkgopt=" + option for option in DPKG_OPTIONS]
    hook = 'mkdir -p "$1/%s" && cp -a "$CLACHAN_GUEST/%s/." "$1/%s/"' % (EDITED, EDITED, EDITED)
    command += ["--essential-hook=" + hook, SUITE, root, *listed]
    run(command, environment=dict(os.environ, CLACHAN_GUEST=guest))
    _install_guest(root, guest)


def _write_sources(folder):
    listed = []
    for ending, text in zip(("list", "sources"), debian_sources(), strict=False):
        if text:
            listed.append(os.path.join(folder, "debian." + ending))
            with open(listed[-1], "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(text)
    return listed


def _install_guest(root, guest):
    """The files that make it a guest, and its units; nothing of the machine that it was made on."""
    for folder, _folders, names in os.walk(guest):
        for name in names:
            source = os.path.join(folder, name)
            target = os.path.join(root, os.path.relpath(source, guest))
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            shutil.copyfile(source, target)
            os.chmod(target, 0o644)
    for verb, units in (("enable", ENABLED), ("mask", MASKED)):
        run(["chroot", root, "systemctl", "--quiet", verb, *units], environment={"SYSTEMD_OFFLINE": "1"})
    _write_lean(root)


def _write_lean(root):
    lists = os.path.join(root, "etc/apt/sources.list.d")
    for name in os.listdir(lists):
        os.unlink(os.path.join(lists, name))
    one_line, stanzas = (without_passwords(text) for text in debian_sources())
    for path, text in (
        ("etc/apt/sources.list", one_line),
        ("etc/apt/sources.list.d/debian.sources", stanzas),
        ("etc/apt/apt.conf.d/99mmdebstrap", "".join(option + ";\n" for option in APT_OPTIONS)),
        ("etc/fstab", ""),
        ("etc/hostname", "localhost\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"),
        ("etc/resolv.conf", ""),
    ):
        if not text and path.startswith("etc/apt"):
            if os.path.exists(os.path.join(root, path)):
                os.unlink(os.path.join(root, path))
            continue
        target = os.path.join(root, path)
        if os.path.islink(target):
            os.unlink(target)
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(target, 0o644)
