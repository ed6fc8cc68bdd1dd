# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that come from elsewhere: looked at before anything opens them, and converted for elsewhere.

A qcow2 file can name other files (a backing file, an external data file), which whoever opens it opens too, and can
promise a disk of exabytes. So the header is read here first, by hand; only a file that stands alone is given to
qemu-img, with its format said and never guessed, and with limits of memory and time. A file without a known header is
raw, and raw is taken only when it is a disk to boot from or is said to be raw.

The layout of qcow2 is that of QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess

from ansible_collections.clachan.platform.plugins.module_utils import layout
from ansible_collections.clachan.platform.plugins.module_utils.file_content import digest_of, sync

QCOW2 = b"QFI\xfb"
FOREIGN = {
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"<<< ": "vdi",
    b"conectix": "vpc",
    b"vhdxfile": "vhdx",
    b"QED\0": "qed",
    b"LUKS\xba\xbe": "luks",
}
BOOT = (510, b"\x55\xaa")
DIRTY, CORRUPT, EXTERNAL = 1, 2, 4
HARMLESS = 0b11000  # zstd clusters, extended L2 entries: how the file itself is read
EXTENSIONS = {0xE2792ACA: "a backing file", 0x44415441: "an external data file", 0x0537BE77: "encryption"}
SMALLEST, LONGEST_HEADER = 72, 64 * 1024
TABLE_BYTES = 32 << 20  # QEMU's own limit of the first-level table
EXPORTS = ("raw", "qcow2", "vmdk", "vdi")
LIMITS = ["prlimit", "--as=%d" % (2 << 30), "--core=0"]
LOOK_SECONDS, CONVERT_SECONDS = 120, 6 * 3600


class DiskImageError(Exception):
    """What is wrong with a disk, as "<what> <which>: <value>, expected <what>"."""


def inspect(path, maximum_bytes, disk_format=None):
    """The disk's format, virtual_size and size in bytes. Raises DiskImageError when it is not one to boot from.

    disk_format: what it is said to be (qcow2 or raw); without it, a file without a header must have a boot sector.
    """
    path = os.path.abspath(path)  # with a slash before any colon it is no URL for qemu-img
    if not os.path.isfile(path):
        raise DiskImageError("disk %s: not a file, expected one" % path)
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        found = probe(file, path, size, disk_format)
        if found == "qcow2":
            virtual = qcow2_size(file, path, size)
        else:
            virtual = size
    if not 0 < virtual <= maximum_bytes or virtual % 512:
        expected = "expected whole sectors and at most %d" % maximum_bytes
        raise DiskImageError("disk %s: virtual size %d bytes, %s" % (path, virtual, expected))
    if found == "qcow2":
        check(path, virtual)
    return {"format": found, "virtual_size": virtual, "size": size}


def probe(file, path, size, disk_format=None):
    """`qcow2` or `raw`, by the file's first sector."""
    sector = file.read(512)
    foreign = next((name for magic, name in FOREIGN.items() if sector.startswith(magic)), None)
    found = "qcow2" if sector.startswith(QCOW2) else foreign or "raw"
    if foreign or (disk_format and disk_format != found):
        raise DiskImageError("disk %s: format %s, expected %s" % (path, found, disk_format or "qcow2 or raw"))
    if found == "raw" and not disk_format and not sector.startswith(BOOT[1], BOOT[0]):
        raise DiskImageError("disk %s: format unknown, expected qcow2, or raw with a boot sector" % path)
    if found == "raw" and size < 512:
        raise DiskImageError("disk %s: %d bytes, expected at least a sector" % (path, size))
    return found


def qcow2_size(file, path, size):
    """The virtual size in a qcow2 header that leads to no other file. Raises DiskImageError for any other."""

    def refuse(what, expected):
        raise DiskImageError("disk %s: %s, expected %s" % (path, what, expected))

    file.seek(0)
    header = file.read(LONGEST_HEADER)
    if len(header) < SMALLEST:
        refuse("%d bytes" % size, "a whole qcow2 header")
    _magic, version, backing, backing_length, cluster_bits, virtual, encryption = struct.unpack_from(
        ">4sIQIIQI", header
    )
    l1_size, l1_offset, refcounts, _clusters, snapshots = struct.unpack_from(">IQQII", header, 36)
    if version not in (2, 3):
        refuse("qcow2 version %d" % version, "2 or 3")
    if version == 3 and len(header) < 104:
        refuse("%d bytes" % size, "a whole qcow2 header")
    features, length = (struct.unpack_from(">Q20xI", header, 72)) if version == 3 else (0, SMALLEST)
    if backing or backing_length:
        refuse("has a backing file", "a disk that stands alone")
    if encryption:
        refuse("is encrypted", "a plain one")
    if features & EXTERNAL:
        refuse("has an external data file", "a disk that stands alone")
    if features & (CORRUPT | DIRTY):
        refuse("is marked as %s" % ("corrupt" if features & CORRUPT else "not closed"), "an intact one")
    if features & ~HARMLESS:
        refuse("has features that are not known (%#x)" % features, "a usual qcow2")
    for extension in extensions(header, length, refuse):
        if extension in EXTENSIONS:
            refuse("has %s" % EXTENSIONS[extension], "a disk that stands alone")
    if not 9 <= cluster_bits <= 21:
        refuse("clusters of 2^%d bytes" % cluster_bits, "2^9 to 2^21")
    if snapshots:
        refuse("has %d snapshots inside" % snapshots, "none")
    if l1_size * 8 > TABLE_BYTES or not 0 < l1_offset <= size - l1_size * 8 or not 0 < refcounts < size:
        refuse("tables beyond its end, or too large", "a whole file")
    return virtual


def extensions(header, position, refuse):
    """The types of the header's extensions."""
    if position < SMALLEST or position % 8:
        refuse("header of %d bytes" % position, "a multiple of 8, at least %d" % SMALLEST)
    while position + 8 <= len(header):
        kind, length = struct.unpack_from(">II", header, position)
        if kind == 0:
            return
        yield kind
        position += 8 + (length + 7) // 8 * 8
    refuse("header extensions without an end", "one within %d bytes" % LONGEST_HEADER)


def check(path, virtual_size):
    """What qemu-img says of a qcow2 file that stands alone: the same, and that it is whole."""
    told = look(path, "info")
    specific = told.get("format-specific", {}).get("data", {})
    strange = [key for key in ("backing-filename", "full-backing-filename", "encrypted") if told.get(key)]
    strange += [key for key in ("data-file", "data-file-raw", "corrupt", "encrypt") if specific.get(key)]
    if told.get("format") != "qcow2" or told.get("virtual-size") != virtual_size or strange:
        said = "format %s, virtual size %s %s" % (told.get("format"), told.get("virtual-size"), " ".join(strange))
        raise DiskImageError("disk %s: %s, expected qcow2 of %d bytes alone" % (path, said.strip(), virtual_size))
    counted = look(path, "check")
    if counted.get("corruptions") or counted.get("check-errors"):
        errors = counted.get("corruptions", 0) + counted.get("check-errors", 0)
        raise DiskImageError("disk %s: %d errors inside, expected a whole file" % (path, errors))


def look(path, verb):
    # 2 and 3 are check's for errors and for clusters that nobody uses
    out = run([verb, "-f", "qcow2", "--output=json", path], LOOK_SECONDS, [0, 2, 3] if verb == "check" else [0], size=0)
    try:
        found = json.loads(out)
    except ValueError as error:
        raise DiskImageError("disk %s: qemu-img %s gave no JSON, expected some" % (path, verb)) from error
    return found


def run(arguments, seconds, accepted=(0,), size=None):
    """qemu-img's output; `size`: how many bytes it may write into a file. Raises DiskImageError when it fails."""
    limits = LIMITS + ["--cpu=%d" % seconds] + ([] if size is None else ["--fsize=%d" % size])
    command = limits + ["qemu-img"] + arguments
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=4 * seconds, check=False)
    except FileNotFoundError as error:
        raise DiskImageError("command %s: not found, expected it (Debian: util-linux)" % error.filename) from error
    except subprocess.TimeoutExpired as error:
        raise DiskImageError(
            "qemu-img %s: not done in %d s, expected it to be" % (arguments[0], 4 * seconds)
        ) from error
    if done.returncode == 127:
        raise DiskImageError("command qemu-img: not found, expected it (Debian: qemu-utils)")
    if done.returncode not in accepted:
        said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")[-500:]
        raise DiskImageError("qemu-img %s: %s, expected it to succeed" % (arguments[0], said or done.returncode))
    return done.stdout


def export(disk, disk_format, destination, wanted):
    """Convert a disk of a known format, which was inspected, and write its sha256 beside it. Gives the sha256.

    A kill leaves the old file or the new one; `destination`.sha256 then is not the new one's, which `exported` sees.
    """
    disk, destination = os.path.abspath(disk), os.path.abspath(destination)
    folder, name = os.path.split(destination)
    if not os.path.isdir(folder):
        raise DiskImageError("folder %s: does not exist, expected it" % folder)
    # a folder of its own: a vmdk has its file's name inside
    beside = os.path.join(folder, ".clachan-export-%s" % name)
    shutil.rmtree(beside, ignore_errors=True)
    os.mkdir(beside, 0o700)
    try:
        path = os.path.join(beside, name)
        run(["convert", "-f", disk_format, "-O", wanted, disk, path], CONVERT_SECONDS)
        digest = digest_of(path)
        sync(path)
        os.replace(path, destination)
        layout.write_file(destination + ".sha256", ("%s  %s\n" % (digest, name)).encode(), 0o644)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return digest


def exported(disk, disk_format, destination, wanted):
    """The sha256 of an export that is already there and has the disk's content; None when there is none."""
    disk, destination = os.path.abspath(disk), os.path.abspath(destination)
    try:
        with open(destination + ".sha256", encoding="ascii", errors="replace") as file:
            noted = file.read().split()
    except OSError:
        return None
    with contextlib.suppress(OSError, DiskImageError):
        if noted[:1] == [digest_of(destination)]:
            run(["compare", "-f", disk_format, "-F", wanted, disk, destination], CONVERT_SECONDS, size=0)
            return noted[0]
    return None
