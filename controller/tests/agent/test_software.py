"""Artifacts are believed only as far as their digest goes."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from clachan.agent.about import platform_digest
from clachan.agent.layout import AgentError
from clachan.agent.software import Software, unpack
from clachan.contract.inventory import SoftwareArtifact

from .conftest import Artifact


def build(path: Path, files: dict[str, bytes], name: str = "acme.things", lie: dict[str, bytes] | None = None) -> str:
    """Write an artifact and give its digest; `lie`: files with other content than what FILES.json says."""
    listed = [
        {"name": name, "ftype": "file", "chksum_sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    files_json = json.dumps({"files": listed, "format": 1}).encode()
    namespace, collection = name.split(".")
    manifest = json.dumps(
        {
            "collection_info": {"namespace": namespace, "name": collection},
            "file_manifest_file": {"name": "FILES.json", "chksum_sha256": hashlib.sha256(files_json).hexdigest()},
        }
    ).encode()
    with tarfile.open(path, "w:gz") as archive:
        for member, content in {"MANIFEST.json": manifest, "FILES.json": files_json, **files, **(lie or {})}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.sha256(manifest).hexdigest()


FILES = {"roles/hello/tasks/main.yml": b"[]\n", "README.md": b"x"}


def test_a_built_collection_is_brought_once(tmp_path: Path, things: Artifact, platform: Path) -> None:
    software = Software(tmp_path / "software", platform)
    artifact = SoftwareArtifact(
        collection="acme.things", version="1.0.0", artifact_sha256=things.sha256, size=1, platform=False
    )
    assert not software.present(things.digest)
    software.bring(things.digest, artifact, things.download)
    assert software.present(things.digest)
    assert software.collections(things.digest) == (tmp_path / "software" / things.digest, platform)
    assert software.has_entry("acme.things.hello", things.digest, "supply")
    assert not software.has_entry("acme.things.web", things.digest, "supply")
    assert [path.name for path in (tmp_path / "software").iterdir()] == [things.digest]

    def never(sha256: str, destination: Path) -> None:
        raise AssertionError("fetched again")

    software.bring(things.digest, artifact, never)
    Software(tmp_path / "software", platform).bring(things.digest, artifact, never)
    assert software.keep_only({things.digest}) == []
    assert software.keep_only(set()) == [things.digest]
    assert list((tmp_path / "software").iterdir()) == []


def test_what_a_killed_agent_left_is_removed(tmp_path: Path, platform: Path) -> None:
    folder = tmp_path / "software"
    (folder / "x.tmp/deep").mkdir(parents=True)
    (folder / ".fetch-1.tar.gz").touch()
    Software(folder, platform)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lie": {"README.md": b"other"}}, "file README.md of acme.things: not as FILES.json lists it"),
        ({"lie": {"extra": b""}}, "file extra of acme.things: not as FILES.json lists it"),
        ({"lie": {"FILES.json": b"{}"}}, "FILES.json of acme.things: sha256 44136fa355b3"),
        ({"lie": {"../out": b""}}, "artifact's member '../out': not a regular file inside"),
        ({"lie": {"/tmp/out": b""}}, "artifact's member '/tmp/out': not a regular file inside"),
        ({"lie": {"./README.md": b"x"}}, "artifact's member './README.md': repeated or too much"),
        ({"name": "other.things"}, "collection other.things: expected acme.things"),
        ({"name": "clachan.platform", "expected": "clachan.platform"}, "collection clachan.platform: expected"),
        ({"digest": "0" * 64}, "MANIFEST.json of acme.things: sha256 "),
    ],
)
def test_a_wrong_artifact_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    expected, digest = change.pop("expected", "acme.things"), change.pop("digest", None)
    found = build(tmp_path / "a.tar.gz", FILES, **change)
    with pytest.raises(AgentError) as caught:
        unpack(tmp_path / "a.tar.gz", tmp_path / "out", digest or found, expected)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    digest = build(tmp_path / "a.tar.gz", FILES)
    with tarfile.open(tmp_path / "a.tar.gz") as source, tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        for member in source:
            archive.addfile(member, source.extractfile(member))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(AgentError, match="artifact's member 'link': not a regular file inside, expected only those"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "out", digest, "acme.things")


def test_a_broken_archive_is_refused_and_leaves_nothing(tmp_path: Path, platform: Path) -> None:
    software = Software(tmp_path / "software", platform)
    artifact = SoftwareArtifact(collection="acme.things", version="1", artifact_sha256="a" * 64, size=1, platform=False)
    with pytest.raises(AgentError, match=r"artifact of acme\.things: .*, expected a collection's tar\.gz"):
        software.bring("b" * 64, artifact, lambda sha256, destination: destination.write_bytes(b"no archive") and None)
    assert list((tmp_path / "software").iterdir()) == []


def test_platform_software_needs_the_installed_platform(tmp_path: Path, platform: Path) -> None:
    software = Software(tmp_path / "software", platform)
    own = platform_digest(platform)
    assert own
    assert software.present(own)
    assert software.collections(own) == (platform,)
    artifact = SoftwareArtifact(
        collection="clachan.platform", version="9.9.9", artifact_sha256=None, size=0, platform=True
    )
    with pytest.raises(AgentError) as caught:
        software.bring("c" * 64, artifact, lambda *_: None)
    assert str(caught.value) == (
        f"platform collection of this node: digest {own[:12]}, expected cccccccccccc (version 9.9.9): "
        "install it with the playbook clachan.platform.node"
    )


def test_a_machine_of_an_image_goes_on_with_the_platform_of_its_image(tmp_path: Path, platform: Path) -> None:
    """The platform was upgraded since; what is inside the machine is healed when it gets a newer image."""
    software = Software(tmp_path / "software", platform, of_image=True)
    artifact = SoftwareArtifact(
        collection="clachan.platform", version="9.9.9", artifact_sha256=None, size=0, platform=True
    )
    software.bring("c" * 64, artifact, lambda *_: None)
    assert software.present("c" * 64)
    assert software.collections("c" * 64) == (platform,)
