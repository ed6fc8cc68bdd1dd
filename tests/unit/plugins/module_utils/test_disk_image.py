# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk from elsewhere is judged by its bytes, before anything opens it."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess

import pytest
from ansible_collections.clachan.platform.plugins.module_utils import disk_image
from ansible_collections.clachan.platform.plugins.module_utils.disk_image import (
    DiskImageError,
    export,
    exported,
    inspect,
)

GIB = 1 << 30
CLUSTER = 1 << 16
NEEDS_QEMU = pytest.mark.skipif(not shutil.which("qemu-img"), reason="this machine cannot: qemu-img is not installed")


def header(**fields):
    """A qcow2 header, right but for `fields`; `extensions` are (type, bytes) pairs."""
    known = {
        "version": 3,
        "backing": 0,
        "backing_length": 0,
        "cluster_bits": 16,
        "size": GIB,
        "encryption": 0,
        "l1_size": 2,
        "l1_offset": 3 * CLUSTER,
        "refcounts": CLUSTER,
        "snapshots": 0,
        "features": 0,
        "length": 104,
        "extensions": [],
    }
    assert set(fields) <= set(known)
    known.update(fields)
    first = ["version", "backing", "backing_length", "cluster_bits", "size", "encryption", "l1_size", "l1_offset"]
    data = struct.pack(">4sIQIIQIIQ", b"QFI\xfb", *[known[name] for name in first])
    data += struct.pack(">QIIQ", known["refcounts"], 1, known["snapshots"], 0)
    data += struct.pack(">QQQII", known["features"], 0, 0, 4, known["length"])
    for kind, content in known["extensions"]:
        data += struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)
    return data + bytes(8)


def write(path, content, size=4 * CLUSTER):
    path.write_bytes(content.ljust(size, b"\0"))
    return str(path)


@pytest.fixture
def never_opened(monkeypatch):
    """qemu-img must not see a file that the header already condemns."""

    def fail(*_arguments, **_options):
        raise AssertionError("qemu-img was given the file")

    monkeypatch.setattr(disk_image, "run", fail)


HOSTILE = {
    "backing file": ({"backing": 0x200, "backing_length": 11}, "has a backing file, expected a disk that stands alone"),
    "backing length": ({"backing_length": 11}, "has a backing file, expected a disk that stands alone"),
    "external data": ({"features": 4}, "has an external data file, expected a disk that stands alone"),
    "data file name": (
        {"extensions": [(0x6803F857, b"x" * 48), (0x44415441, b"/etc/shadow")]},
        "has an external data file, expected a disk that stands alone",
    ),
    "backing format": (
        {"extensions": [(0xE2792ACA, b"raw")]},
        "has a backing file, expected a disk that stands alone",
    ),
    "luks inside": ({"extensions": [(0x0537BE77, bytes(16))]}, "has encryption, expected a disk that stands alone"),
    "encrypted": ({"encryption": 1}, "is encrypted, expected a plain one"),
    "corrupt": ({"features": 2}, "is marked as corrupt, expected an intact one"),
    "not closed": ({"features": 1}, "is marked as not closed, expected an intact one"),
    "unknown feature": (
        {"features": 1 << 40},
        "has features that are not known (0x10000000000), expected a usual qcow2",
    ),
    "version": ({"version": 4}, "qcow2 version 4, expected 2 or 3"),
    "clusters": ({"cluster_bits": 63}, "clusters of 2^63 bytes, expected 2^9 to 2^21"),
    "snapshots": ({"snapshots": 7}, "has 7 snapshots inside, expected none"),
    "first table": ({"l1_size": 1 << 30}, "tables beyond its end, or too large, expected a whole file"),
    "table beyond": ({"l1_offset": 1 << 50}, "tables beyond its end, or too large, expected a whole file"),
    "no table": ({"l1_offset": 0}, "tables beyond its end, or too large, expected a whole file"),
    "refcounts beyond": ({"refcounts": 1 << 50}, "tables beyond its end, or too large, expected a whole file"),
    "header length": ({"length": 3}, "header of 3 bytes, expected a multiple of 8, at least 72"),
    "header too long": ({"length": 1 << 31}, "header extensions without an end, expected one within 65536 bytes"),
    "extension too long": (
        {"extensions": [(1, b"")], "length": 104},
        "header extensions without an end, expected one within 65536 bytes",
    ),
    "huge": (
        {"size": 1 << 62},
        "virtual size %d bytes, expected whole sectors and at most %d" % (1 << 62, 64 * GIB),
    ),
    "empty": ({"size": 0}, "virtual size 0 bytes, expected whole sectors and at most %d" % (64 * GIB)),
    "odd": ({"size": 513}, "virtual size 513 bytes, expected whole sectors and at most %d" % (64 * GIB)),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_header_is_refused_unopened(tmp_path, never_opened, case):
    fields, expected = HOSTILE[case]
    content = header(**fields)
    if case == "extension too long":
        content = content[:104] + struct.pack(">II", 1, 0xFFFFFFF0)
    path = write(tmp_path / "disk", content)
    with pytest.raises(DiskImageError) as caught:
        inspect(path, 64 * GIB)
    assert str(caught.value) == "disk %s: %s" % (path, expected)


@pytest.mark.parametrize("length", [4, 71, 72, 103])
def test_a_header_that_ends_early_is_refused(tmp_path, never_opened, length):
    path = write(tmp_path / "disk", header()[:length], length)
    with pytest.raises(DiskImageError, match="%d bytes, expected a whole qcow2 header" % length):
        inspect(path, GIB)


@pytest.mark.parametrize("magic", sorted(disk_image.FOREIGN))
def test_other_formats_are_refused_also_when_they_are_said_to_be_raw(tmp_path, never_opened, magic):
    path = write(tmp_path / "disk", magic)
    for said, expected in ((None, "qcow2 or raw"), ("raw", "raw"), ("qcow2", "qcow2")):
        with pytest.raises(DiskImageError) as caught:
            inspect(path, GIB, said)
        found = disk_image.FOREIGN[magic]
        assert str(caught.value) == "disk %s: format %s, expected %s" % (path, found, expected)


def test_a_qcow2_is_never_taken_for_raw(tmp_path, never_opened):
    path = write(tmp_path / "disk", header(backing=512, backing_length=11))
    with pytest.raises(DiskImageError) as caught:
        inspect(path, GIB, "raw")
    assert str(caught.value) == "disk %s: format qcow2, expected raw" % path


def test_raw_is_taken_with_a_boot_sector_or_when_it_is_said(tmp_path, never_opened):
    path = write(tmp_path / "disk", b"\xeb\x58" + bytes(508) + b"\x55\xaa")
    expected = {"format": "raw", "virtual_size": 4 * CLUSTER, "size": 4 * CLUSTER}
    assert inspect(path, GIB) == inspect(path, GIB, "raw") == expected
    with pytest.raises(DiskImageError, match="format raw, expected qcow2"):
        inspect(path, GIB, "qcow2")
    with pytest.raises(DiskImageError, match="virtual size 262144 bytes, expected whole sectors and at most 262143"):
        inspect(path, 4 * CLUSTER - 1)
    path = write(tmp_path / "text", b"hello")
    with pytest.raises(DiskImageError, match="format unknown, expected qcow2, or raw with a boot sector"):
        inspect(path, GIB)
    assert inspect(path, GIB, "raw") == expected
    path = write(tmp_path / "odd", b"hello", 1000)
    with pytest.raises(DiskImageError, match="virtual size 1000 bytes, expected whole sectors"):
        inspect(path, GIB, "raw")
    path = write(tmp_path / "none", b"", 0)
    with pytest.raises(DiskImageError, match="0 bytes, expected at least a sector"):
        inspect(path, GIB, "raw")
    with pytest.raises(DiskImageError, match="not a file, expected one"):
        inspect(str(tmp_path), GIB)
    with pytest.raises(DiskImageError, match="not a file, expected one"):
        inspect("/dev/zero", GIB)


def make(path, *options, content=True):
    """A real qcow2 of 64 MiB with some content."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "64M"], check=True)
    if content:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 85 0 3M", str(path)], check=True)
    return str(path)


@NEEDS_QEMU
@pytest.mark.parametrize(
    "options",
    [[], ["-o", "compat=0.10"], ["-o", "compression_type=zstd"], ["-o", "extended_l2=on"], ["-o", "cluster_size=2M"]],
)
def test_a_usual_qcow2_is_taken(tmp_path, options):
    path = make(tmp_path / "disk", *options)
    found = inspect(path, GIB)
    assert found == {"format": "qcow2", "virtual_size": 64 << 20, "size": os.path.getsize(path)}


@NEEDS_QEMU
def test_what_qemu_makes_with_other_files_is_refused(tmp_path, never_opened):
    whole = make(tmp_path / "whole")
    based = str(tmp_path / "based")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", whole, "-F", "qcow2", based], check=True)
    outside = make(tmp_path / "outside", "-o", "data_file=%s" % (tmp_path / "elsewhere"), content=False)
    for path in (based, outside):
        with pytest.raises(DiskImageError, match="expected a disk that stands alone"):
            inspect(path, GIB)


@NEEDS_QEMU
def test_a_truncated_or_damaged_qcow2_is_refused(tmp_path):
    path = make(tmp_path / "disk")
    os.truncate(path, os.path.getsize(path) - 2 * (1 << 20))
    with pytest.raises(DiskImageError, match=r"disk .*: [0-9]+ errors inside, expected a whole file"):
        inspect(path, GIB)
    path = make(tmp_path / "other")
    with open(path, "r+b") as file:
        # an entry of the second-level table that points far beyond the end
        file.seek(disk_l1(path))
        file.write(struct.pack(">Q", 1 << 45 | 1 << 63))
    with pytest.raises(DiskImageError, match=r"disk .*: [0-9]+ errors inside, expected a whole file|qemu-img check"):
        inspect(path, GIB)


def disk_l1(path):
    with open(path, "rb") as file:
        return struct.unpack_from(">Q", file.read(48), 40)[0]


@NEEDS_QEMU
def test_names_are_never_urls_or_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("json:{}", "nbd:localhost:1", "-f", "a,b"):
        make(tmp_path / name)
        assert inspect(name, GIB)["format"] == "qcow2"
        digest = export(name, "qcow2", "out-" + name, "vdi")
        assert exported(name, "qcow2", "out-" + name, "vdi") == digest


@NEEDS_QEMU
@pytest.mark.parametrize("wanted", disk_image.EXPORTS)
def test_an_export_has_a_checksum_and_the_same_content(tmp_path, wanted):
    path, out = make(tmp_path / "disk"), str(tmp_path / ("out." + wanted))
    assert exported(path, "qcow2", out, wanted) is None
    digest = export(path, "qcow2", out, wanted)
    with open(out, "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() == digest
    with open(out + ".sha256", encoding="ascii") as file:
        assert file.read() == "%s  out.%s\n" % (digest, wanted)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", wanted, path, out], check=True)
    assert exported(path, "qcow2", out, wanted) == digest
    assert sorted(os.listdir(str(tmp_path))) == ["disk", "out." + wanted, "out.%s.sha256" % wanted]
    with open(out, "r+b") as file:
        file.seek(600)
        file.write(b"damage")
    assert exported(path, "qcow2", out, wanted) is None
    export(path, "qcow2", out, wanted)
    # the content of another image
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 4M 1M", path], check=True)
    assert exported(path, "qcow2", out, wanted) is None


@NEEDS_QEMU
def test_a_failed_export_leaves_the_old_file(tmp_path):
    path, out = make(tmp_path / "disk"), tmp_path / "out"
    out.write_bytes(b"old")
    (tmp_path / ".clachan-export-out").mkdir()  # of a killed one
    os.truncate(path, 100)
    with pytest.raises(DiskImageError, match="qemu-img convert: "):
        export(path, "qcow2", str(out), "raw")
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(str(tmp_path))) == ["disk", "out"]
    with pytest.raises(DiskImageError, match=r"folder .*/none: does not exist, expected it"):
        export(path, "qcow2", str(tmp_path / "none" / "out"), "raw")


@NEEDS_QEMU
def test_qemu_img_has_limits(tmp_path, monkeypatch):
    path = make(tmp_path / "disk")
    monkeypatch.setattr(disk_image, "LIMITS", ["prlimit", "--as=%d" % (8 << 20), "--core=0"])
    with pytest.raises(DiskImageError, match=r"expected it to succeed|not found"):
        inspect(path, GIB)
