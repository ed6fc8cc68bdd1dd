"""What a disk image's first bytes say: that it is of its declared format and stands alone.

Nodes look closer before a machine boots from it; here a disk that leads to other files is kept out of the store.
The layout is that of QEMU's docs/interop/qcow2.txt.
"""

import struct

HEADER_BYTES = 104
QCOW2 = b"QFI\xfb"
OTHERS = (b"KDMV", b"COWD", b"# Disk DescriptorFile", b"<<< ", b"conectix", b"vhdxfile", b"QED\0", b"LUKS\xba\xbe")
"""VMware, VirtualBox, Virtual PC, Hyper-V, QED, LUKS: a "raw" disk that begins so is none."""
ENDURED = 0b11000
"""Incompatible features that change only how the file itself is read: zstd clusters, extended L2 entries."""


def problem(header: bytes, size: int, disk_format: str, virtual_size: int) -> str | None:
    """What is wrong with a disk of `size` bytes that begins with `header`, as "<what>, expected <what>"."""
    if header.startswith(OTHERS) or header.startswith(QCOW2) != (disk_format == "qcow2"):
        return f"begins with {header[:8].hex()}, expected the format {disk_format}"
    if disk_format == "raw":
        found = size
    elif len(header) < HEADER_BYTES:
        return f"{size} bytes, expected a whole qcow2 header"
    else:
        _, version, backing, _, _, found, encryption = struct.unpack_from(">4sIQIIQI", header)
        features = struct.unpack_from(">Q", header, 72)[0] if version > 2 else 0
        if version not in {2, 3}:
            return f"qcow2 version {version}, expected 2 or 3"
        if backing or encryption or features & ~ENDURED:
            return "has a backing file, an external data file, encryption or damage, expected a disk that stands alone"
    return None if found == virtual_size else f"virtual size {found}, expected {virtual_size} as in the manifest"
