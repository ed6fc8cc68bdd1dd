"""Read a collection: from its artifact, which is foreign, or from the platform's installed folder, which is ours.

An artifact is a tar.gz as `ansible-galaxy collection build` makes it. Nothing of it is unpacked: it is read once as
a stream, regular files and folders only, each file's sha256 compared with FILES.json, and FILES.json's with
MANIFEST.json. What is kept in memory is the two manifests and the roles' `meta/` files, all with limits.
"""

import hashlib
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import ValidationError

from clachan.contract.names import FQCN
from clachan.contract.software import SoftwareMeta
from clachan.server.decisions.argument_spec import SpecError, compile_role
from clachan.server.services.refusals import Invalid

PLATFORM = "clachan.platform"
MEMBERS = 50_000
KEPT_BYTES = 4 * 1024 * 1024
"""Of one manifest or meta file."""
META = re.compile(r"roles/([a-z][a-z0-9_]*)/meta/(clachan|argument_specs)\.ya?ml\Z")


@dataclass(frozen=True)
class Role:
    """A software of a collection: FQCN, what it says of itself, type -> JSON Schema."""

    fqcn: str
    meta: SoftwareMeta
    types: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Collection:
    name: str
    version: str
    digest: str
    """sha256 of MANIFEST.json."""
    roles: list[Role]


def read_artifact(path: Path, unpacked_bytes: int) -> Collection:
    """The collection of an artifact; raises Invalid with what is wrong with it."""
    try:
        with tarfile.open(path, mode="r|gz") as archive:
            digests, kept = _read_members(archive, unpacked_bytes)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Invalid("artifact: not a complete tar.gz, expected what ansible-galaxy collection build makes") from error
    collection = _collection(kept)
    listed = _listed(kept)
    for name, digest in digests.items():
        if name not in {"MANIFEST.json", "FILES.json"} and listed.get(name) != digest:
            raise Invalid(f"artifact: file {name} is not as FILES.json lists it, expected the same sha256")
    if missing := sorted(listed.keys() - digests.keys()):
        raise Invalid(f"artifact: file {missing[0]} is missing, expected all that FILES.json lists")
    return collection


def read_installed(folder: Path) -> Collection:
    """The platform's collection as it is installed; the files that are read here are verified, no others."""
    kept = {name: (folder / name).read_bytes() for name in ("MANIFEST.json", "FILES.json")}
    for path in sorted(folder.glob("roles/*/meta/*.y*ml")):
        name = path.relative_to(folder).as_posix()
        if META.match(name):
            kept[name] = path.read_bytes()
    collection = _collection(kept)
    listed = _listed(kept)
    for name, content in kept.items():
        if name.startswith("roles/") and listed.get(name) != hashlib.sha256(content).hexdigest():
            raise Invalid(f"collection {folder}: file {name} is not as FILES.json lists it, expected the same sha256")
    return collection


def _read_members(archive: tarfile.TarFile, unpacked_bytes: int) -> tuple[dict[str, str], dict[str, bytes]]:
    """sha256 of every file by name, and the content of the few that are needed."""
    digests: dict[str, str] = {}
    kept: dict[str, bytes] = {}
    left = unpacked_bytes
    for count, member in enumerate(archive):
        name = _safe_name(member)
        left -= member.size
        if count >= MEMBERS or left < 0:
            raise Invalid(f"artifact: more than {MEMBERS} files or {unpacked_bytes} bytes unpacked, expected less")
        if member.isdir():
            continue
        if name in digests:
            raise Invalid(f"artifact: file {name} is there twice, expected once")
        file = archive.extractfile(member)
        assert file is not None
        digests[name], content = _read_file(file, name)
        if content is not None:
            kept[name] = content
    return digests, kept


def _safe_name(member: tarfile.TarInfo) -> str:
    name = posixpath.normpath(member.name)
    unsafe = member.name.startswith("/") or ".." in member.name.split("/") or not member.name.isprintable()
    if unsafe or not (member.isreg() or member.isdir()):
        raise Invalid(f"artifact: member {member.name!r}, expected regular files and folders below it only")
    return name


def _read_file(file: IO[bytes], name: str) -> tuple[str, bytes | None]:
    wanted = name in {"MANIFEST.json", "FILES.json"} or META.match(name) is not None
    digest, parts = hashlib.sha256(), []
    size = 0
    while block := file.read(1 << 16):
        digest.update(block)
        size += len(block)
        if wanted:
            if size > KEPT_BYTES:
                raise Invalid(f"artifact: file {name} is larger than {KEPT_BYTES} bytes, expected less")
            parts.append(block)
    return digest.hexdigest(), b"".join(parts) if wanted else None


def _collection(kept: dict[str, bytes]) -> Collection:
    if "MANIFEST.json" not in kept or "FILES.json" not in kept:
        raise Invalid("artifact: no MANIFEST.json and FILES.json, expected a collection")
    manifest = _json(kept, "MANIFEST.json")
    try:
        info, files = manifest["collection_info"], manifest["file_manifest_file"]
        namespace, name, version = (str(info[key]) for key in ("namespace", "name", "version"))
        expected = files["chksum_sha256"]
    except (KeyError, TypeError) as error:
        raise Invalid(f"artifact: MANIFEST.json has no {error}, expected that of a collection") from error
    if not re.fullmatch(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*", f"{namespace}.{name}"):
        raise Invalid(f"artifact: collection {namespace}.{name}, expected a name of [a-z0-9_]")
    if hashlib.sha256(kept["FILES.json"]).hexdigest() != expected:
        raise Invalid("artifact: FILES.json is not as MANIFEST.json lists it, expected the same sha256")
    digest = hashlib.sha256(kept["MANIFEST.json"]).hexdigest()
    return Collection(f"{namespace}.{name}", version, digest, list(_roles(f"{namespace}.{name}", kept)))


def _roles(collection: str, kept: dict[str, bytes]) -> Iterator[Role]:
    """The roles that are software: those with `meta/clachan.yml`."""
    found: dict[str, dict[str, str]] = {}
    for path in kept:
        if match := META.match(path):
            found.setdefault(match[1], {})[match[2]] = path
    for role, files in sorted(found.items()):
        if "clachan" not in files:
            continue
        if "argument_specs" not in files:
            raise Invalid(f"role {role}: no meta/argument_specs.yml, expected one beside meta/clachan.yml")
        yield _role(f"{collection}.{role}", _yaml(kept, files["clachan"]), _yaml(kept, files["argument_specs"]))


def _role(fqcn: str, said: Any, specs: Any) -> Role:
    if not re.fullmatch(FQCN, fqcn):
        raise Invalid(f"role {fqcn}: expected a name of [a-z0-9_]")
    try:
        meta = SoftwareMeta.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"role {fqcn}: meta/clachan.yml, {key}: {first['msg']}") from error
    if not isinstance(specs, dict) or not isinstance(specs.get("argument_specs"), dict):
        raise Invalid(f"role {fqcn}: meta/argument_specs.yml, expected a mapping argument_specs")
    try:
        return Role(fqcn, meta, compile_role(fqcn, specs["argument_specs"], meta))
    except SpecError as error:
        raise Invalid(str(error)) from error


def _listed(kept: dict[str, bytes]) -> dict[str, str]:
    """File name -> sha256, as FILES.json has them."""
    lines = _json(kept, "FILES.json").get("files")
    if not isinstance(lines, list):
        raise Invalid("artifact: FILES.json has no list files, expected that of a collection")
    return {
        str(line.get("name")): str(line.get("chksum_sha256"))
        for line in lines
        if isinstance(line, dict) and line.get("ftype") == "file"
    }


def _json(kept: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        content = json.loads(kept[name])
    except (ValueError, RecursionError) as error:
        raise Invalid(f"artifact: {name} is not JSON, expected an object") from error
    if not isinstance(content, dict):
        raise Invalid(f"artifact: {name} is not an object, expected one")
    return content


def _yaml(kept: dict[str, bytes], name: str) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # with aliases a few bytes can stand for gigabytes
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(kept[name], Loader=loader)):
            raise Invalid(f"artifact: {name} has an alias, expected plain YAML")
        return yaml.load(kept[name], Loader=loader)  # noqa: S506 - a safe one
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"artifact: {name} is not YAML, expected a mapping") from error
