"""What a node says of itself. It stands on the standard library alone, as `invitation`, which says it first."""

import hashlib
import os
import platform as system
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clachan

MIB = 1024 * 1024


def about(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a NodeFact, of the settings as they are in node/config.json."""
    disk = os.statvfs(config["slots_directory"])
    return {
        "kind": "node",
        "version": clachan.__version__,
        **{key: config[key] for key in ("mode", "slots", "slots_directory", "users")},
        "cpu_milli": 1000 * (os.cpu_count() or 1),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB,
        "disk_mib": disk.f_blocks * disk.f_frsize // MIB,
        "python": system.python_version(),
        "system": system.freedesktop_os_release().get("PRETTY_NAME", system.system()),
        "platform_digest": platform_digest(Path(config["platform_path"])),
    }


def platform_digest(platform: Path) -> str | None:
    """Of the platform collection installed there; None when it was not installed from an artifact."""
    try:
        manifest = platform / "ansible_collections/clachan/platform/MANIFEST.json"
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    except OSError:
        return None
