"""The code of software on this node: fetched, verified, unpacked to a folder of its own, one per build.

    software/<digest>/ansible_collections/NAMESPACE/NAME/    digest: sha256 of the collection's MANIFEST.json

A folder that has its final name is complete: it was unpacked beside it, each file verified against FILES.json, and
FILES.json and MANIFEST.json against the digest, and renamed. The platform's own collection is installed with the node;
a machine made of an image goes on with the one in it when the platform has another build.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from clachan.agent.about import platform_digest
from clachan.agent.layout import AgentError
from clachan.contract.inventory import SoftwareArtifact

PLATFORM = "clachan.platform"
UNPACKED_BYTES = 1024 * 1024 * 1024
UNPACKED_FILES = 50_000
BLOCK = 1024 * 1024
PART = re.compile(r"[a-z][a-z0-9_]*\Z")

Download = Callable[[str, Path], None]
"""(sha256 of the artifact, destination)"""


class Software:
    """The folders of software on this node."""

    def __init__(self, folder: Path, platform: Path, *, of_image: bool = False) -> None:
        """`of_image`: software of the platform is there in the build that the image has, whichever is asked for."""
        self._folder = folder
        self._platform = platform
        self._of_image = of_image
        self._known: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in [*folder.glob("*.tmp"), *folder.glob(".fetch*")]:
            remove(leftover)

    def present(self, digest: str) -> bool:
        if digest in self._known:
            return True
        if digest == platform_digest(self._platform) or (self._folder / digest).is_dir():
            self._known.add(digest)
            return True
        return False

    def collections(self, digest: str) -> tuple[Path, ...]:
        """What a run of this software has on its path: its own folder and the platform's."""
        platform = self._platform.resolve()
        folder = self._folder / digest
        return (folder, platform) if folder.is_dir() else (platform,)

    def has_entry(self, software: str, digest: str, entry: str) -> bool:
        """Whether the role has tasks/<entry>.yml."""
        namespace, name, role = software.split(".")
        tasks = Path("ansible_collections") / namespace / name / "roles" / role / "tasks" / f"{entry}.yml"
        return any((folder / tasks).is_file() for folder in self.collections(digest))

    def bring(self, digest: str, artifact: SoftwareArtifact | None, download: Download) -> None:
        """Make the software's files present; raises AgentError, or what `download` raises."""
        if self.present(digest):
            return
        if artifact is None:
            raise AgentError(f"software {digest[:12]}: the slice does not say where it comes from")
        if artifact.platform and self._of_image:
            self._known.add(digest)
            return
        if artifact.platform or artifact.artifact_sha256 is None:
            own = platform_digest(self._platform) or "none"
            self._known.clear()
            raise AgentError(
                f"platform collection of this node: digest {own[:12]}, expected {digest[:12]} (version "
                f"{artifact.version}): install it with the playbook clachan.platform.node"
            )
        fetched = self._folder / f".fetch-{artifact.artifact_sha256}.tar.gz"
        fresh = self._folder / f"{digest}.tmp"
        try:
            download(artifact.artifact_sha256, fetched)
            remove(fresh)
            unpack(fetched, fresh, digest, artifact.collection)
            os.sync()  # its files must be on disk before its name is
            fresh.rename(self._folder / digest)
        finally:
            fetched.unlink(missing_ok=True)
            remove(fresh)

    def keep_only(self, digests: Collection[str]) -> list[str]:
        """Remove the folders of software that nothing in the slice needs; gives their digests."""
        unused = [folder for folder in self._folder.iterdir() if folder.is_dir() and folder.name not in digests]
        for folder in unused:
            self._known.discard(folder.name)
            doomed = folder.rename(folder.with_suffix(".tmp"))
            remove(doomed)
        return [folder.name for folder in unused]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unpack(artifact: Path, destination: Path, digest: str, collection: str) -> None:
    """Unpack a collection's artifact below destination/ansible_collections and verify every file of it.

    Raises AgentError: a link, a path outside, a file that FILES.json does not list or lists otherwise, too much.
    """
    staging = destination / "staging"
    staging.mkdir(mode=0o700, parents=True)
    try:
        with tarfile.open(artifact, "r:gz") as archive:
            found = _extract(archive, staging)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise AgentError(f"artifact of {collection}: {error}, expected a collection's tar.gz") from error
    namespace, name = _verify(staging, found, digest, collection)
    home = destination / "ansible_collections" / namespace
    home.mkdir(parents=True)
    staging.rename(home / name)


def _extract(archive: tarfile.TarFile, staging: Path) -> dict[str, str]:
    """Write the regular files; gives the sha256 of each by its name."""
    found: dict[str, str] = {}
    left = UNPACKED_BYTES
    for member in archive:
        name = os.path.normpath(member.name)
        if name == "." or member.isdir():
            continue
        left -= member.size
        if not member.isreg() or name.startswith(("/", "..")) or not name.isprintable():
            raise AgentError(f"artifact's member {member.name!r}: not a regular file inside, expected only those")
        if left < 0 or len(found) >= UNPACKED_FILES or name in found:
            raise AgentError(f"artifact's member {member.name!r}: repeated or too much, expected a collection")
        found[name] = _write(archive, member, staging / name)
    return found


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None  # it is a regular file
    digest = hashlib.sha256()
    with path.open("xb") as file:
        while block := source.read(BLOCK):
            digest.update(block)
            file.write(block)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)
    return digest.hexdigest()


def _verify(staging: Path, found: dict[str, str], digest: str, collection: str) -> tuple[str, str]:
    if found.get("MANIFEST.json") != digest:
        raise AgentError(f"MANIFEST.json of {collection}: sha256 {found.get('MANIFEST.json')}, expected {digest}")
    try:
        manifest = json.loads((staging / "MANIFEST.json").read_bytes())
        info, files = manifest["collection_info"], manifest["file_manifest_file"]
        if found.get("FILES.json") != files["chksum_sha256"]:
            raise AgentError(f"FILES.json of {collection}: sha256 {found.get('FILES.json')}, expected the manifest's")
        listed = _listed(json.loads((staging / "FILES.json").read_bytes()))
        namespace, name = str(info["namespace"]), str(info["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError(f"manifest of {collection}: {error!r}, expected that of a built collection") from error
    _same_files(found, listed, collection)
    if (
        f"{namespace}.{name}" != collection
        or collection == PLATFORM
        or not (PART.match(namespace) and PART.match(name))
    ):
        raise AgentError(f"collection {namespace}.{name}: expected {collection}, and not the platform's own")
    return namespace, name


def _listed(files: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["chksum_sha256"] for one in files["files"] if one["ftype"] == "file"}


def _same_files(found: dict[str, str], listed: dict[str, str], collection: str) -> None:
    content = {name: sha for name, sha in found.items() if name not in {"MANIFEST.json", "FILES.json"}}
    if content != listed:
        wrong = sorted(name for name in {*content, *listed} if content.get(name) != listed.get(name))
        raise AgentError(f"file {wrong[0]} of {collection}: not as FILES.json lists it, expected the built collection")
