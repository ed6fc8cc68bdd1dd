"""The base: a Debian 12 root file system with systemd, Python and sshd, from the host's own apt sources."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from testbed.host import LabError, locked, run, testbed

SUITE = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus,python3,openssh-server,iproute2,ca-certificates"
VM_NODE_PACKAGES = (
    "iproute2",
    "libvirt-clients",
    "libvirt-daemon-system",
    "nftables",
    "openssh-client",
    "procps",
    "python3-apt",
    "python3-libvirt",
    "python3-pycdlib",
    "python3-venv",
    "qemu-system-x86",
    "qemu-utils",
    "socat",
)
"""What the role `vm` installs, there already as machines reach no mirror; and what a push needs for its first venv."""
MASKED = (
    "systemd-udevd.service systemd-udev-trigger.service getty@.service console-getty.service "
    "systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer systemd-networkd-wait-online.service "
    "e2scrub_all.timer dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount"
)
APT_OPTIONS = ('Acquire::Languages "none"', 'Acquire::Check-Valid-Until "false"')
DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
HOOKS = (
    'rm -f "$1"/etc/ssh/ssh_host_*; : > "$1"/etc/machine-id',
    r'printf "PermitRootLogin prohibit-password\nUseDNS no\n" > "$1"/etc/ssh/sshd_config.d/10-testbed.conf',
    f'chroot "$1" systemctl -q mask {MASKED}',
    # a list folder that looks fresh makes apt's cache_valid_time believe that it is filled
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin; touch -d @0 "$1"/var/lib/apt/lists',
)
SUITES = re.compile(rf"\b{SUITE}(-updates|-security)?\b(?!-)")


def base(extra: Sequence[str] = ()) -> Path:
    """The folder of the base; made in about half a minute when this recipe has none yet. Raises LabError.

    `extra` are further Debian packages: a base of its own.
    """
    sources = debian_sources()
    packages = ",".join([PACKAGES, *sorted(extra)])
    recipe = "\0".join((*sources.values(), packages, *APT_OPTIONS, *DPKG_OPTIONS, *HOOKS))
    folder = testbed() / f"base-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with locked(testbed() / "base.lock"):
        if not folder.is_dir():
            _make(folder, sources, packages)
    return folder


def debian_sources(folder: Path = Path("/etc/apt")) -> dict[str, str]:
    """The host's apt sources of Debian 12 by file form, other vendors' left out; LabError when there are none."""
    stanzas = [text for path in sorted(folder.glob("sources.list.d/*.sources")) for text in _stanzas(path)]
    listed = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]
    lines = [line for path in listed for line in _lines(path)]
    if not stanzas and not lines:
        raise LabError(f"apt sources in {folder}: none of {SUITE}, expected those of Debian 12")
    forms = {"sources": "\n\n".join(stanzas), "list": "\n".join(lines)}
    return {form: text + "\n" for form, text in forms.items() if text}


def _stanzas(path: Path) -> list[str]:
    """deb822 stanzas of our suites, without the others' suites and comments."""
    kept = []
    for stanza in re.split(r"\n\s*\n", path.read_text()):
        fields = [line for line in stanza.splitlines() if line and not line.startswith("#")]
        suites = next((line for line in fields if line.startswith("Suites:")), "")
        ours = [word for word in suites.split()[1:] if SUITES.fullmatch(word)]
        if ours and "Enabled: no" not in fields:
            kept.append("\n".join(f"Suites: {' '.join(ours)}" if line == suites else line for line in fields))
    return kept


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    words = ((line, re.sub(r"\[.*?\]", "", line).split()) for line in path.read_text().splitlines())
    return [line for line, (*parts,) in words if parts[:1] == ["deb"] and SUITES.fullmatch((*parts, "", "")[2])]


def _make(folder: Path, sources: dict[str, str], packages: str) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    listed = [folder.with_suffix(f".{form}") for form in sources]
    for path, text in zip(listed, sources.values(), strict=True):
        path.write_text(text)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={packages}"]
    command += [f"--aptopt={option}" for option in (*APT_OPTIONS, *_host_apt_options())]
    command += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    command += [f"--customize-hook={hook}" for hook in HOOKS]
    run([*command, SUITE, partial, *listed])
    partial.rename(folder)


def _host_apt_options() -> list[str]:
    """The host's proxies and its view of dates hold for the base too."""
    keys = ("Acquire::http", "Acquire::https", "Acquire::Check-Date")
    dumped = run(["apt-config", "dump"]).splitlines()
    return [line.rstrip(";") for line in dumped if line.startswith(keys) and not line.endswith('"";')]
