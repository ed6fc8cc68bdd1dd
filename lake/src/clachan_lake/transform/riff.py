"""WAV files: the header, from any source of bytes.

    RIFF size WAVE                     (RF64, BW64: sizes of 64 bits stand in the chunk ds64; EBU Tech 3306)
      fmt  size  format:2 channels:2 rate:4 bytes a second:4 frame bytes:2 bits:2
                 [extension size:2 valid bits:2 channel mask:4 format GUID:16]   (format 0xFFFE, WAVE_FORMAT_EXTENSIBLE)
      data size  frames
      ...        other chunks, skipped; each is padded to an even length

All little endian. Recorders that were cut leave sizes of 0 or 0xFFFFFFFF, or ones that lie: then the data go to the end
of the file, and a warning says so. Nothing here trusts a length.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from clachan_lake.transform.batch import ContentError

Reader = Callable[[int, int], bytes]
"""(offset, count) -> at most count bytes."""

Sample = Literal["u8", "s16", "s24", "s32", "f32", "f64"]

PCM, IEEE_FLOAT, EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
CHUNKS = 10_000
UNKNOWN = 0xFFFFFFFF
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
OTHER_FORMATS = {0x0002: "ADPCM", 0x0006: "A-law", 0x0007: "mu-law", 0x0011: "IMA ADPCM", 0x0055: "MP3"}
SAMPLES: dict[tuple[int, int], Sample] = {
    (PCM, 1): "u8",
    (PCM, 2): "s16",
    (PCM, 3): "s24",
    (PCM, 4): "s32",
    (IEEE_FLOAT, 4): "f32",
    (IEEE_FLOAT, 8): "f64",
}
SPEAKERS = [
    "front left",
    "front right",
    "front centre",
    "low frequency",
    "back left",
    "back right",
    "front left of centre",
    "front right of centre",
    "back centre",
    "side left",
    "side right",
    "top centre",
    "top front left",
    "top front centre",
    "top front right",
    "top back left",
    "top back centre",
    "top back right",
]


class WavError(ContentError):
    """The file is no WAV file that can be read; the message says what stands where something else was expected."""


@dataclass(frozen=True)
class Format:
    sample: Sample
    channels: int
    rate: int
    """Frames a second."""
    frame_bytes: int
    valid_bits: int
    mask: int
    """Which speakers; 0 when the file does not say."""


@dataclass(frozen=True)
class Wav:
    format: Format
    offset: int
    """Where the frames begin."""
    frames: int
    warnings: tuple[str, ...] = field(default=())


def parse(read: Reader, size: int) -> Wav:
    """The header of a file of `size` bytes; raises WavError."""
    kind = read(0, 12)
    if size == 0:
        raise WavError("file: empty, expected a WAV file")
    if len(kind) < 12 or kind[:4] not in {b"RIFF", b"RF64", b"BW64"} or kind[8:12] != b"WAVE":
        raise WavError(f"file: begins with {kind!r}, expected RIFF....WAVE")
    form: Format | None = None
    long_data: int | None = None
    offset = 12
    for _ in range(CHUNKS):
        head = read(offset, 8)
        if len(head) < 8:
            break
        name, length = head[:4], int.from_bytes(head[4:], "little")
        body = offset + 8
        if name == b"fmt ":
            form = _format(read(body, min(length, 40)), length)
        elif name == b"ds64" and kind[:4] != b"RIFF":
            long_data = _long_size(read(body, 16))
        elif name == b"data":
            if length == UNKNOWN and long_data is not None:
                length = long_data
            open_end = length == UNKNOWN or (length == 0 and _unfinished(kind, size))
            return _frames(form, body, None if open_end else length, size)
        offset = body + length + length % 2
    else:
        raise WavError(f"file: more than {CHUNKS} chunks, expected a chunk data among them")
    missing = "data" if form else "fmt"
    raise WavError(f"file: {size} bytes without a chunk {missing}, expected one (the file may be truncated)")


def _format(body: bytes, length: int) -> Format:
    if len(body) < 16:
        raise WavError(f"chunk fmt: {min(length, len(body))} bytes, expected at least 16")
    code, channels, rate, _per_second, frame_bytes, bits = struct.unpack_from("<HHIIHH", body)
    valid, mask = bits, 0
    if code == EXTENSIBLE:
        code, valid, mask = _extension(body, bits)
    if not channels or not rate:
        raise WavError(f"chunk fmt: {channels} channels at {rate} Hz, expected at least 1 of each")
    width, rest = divmod(frame_bytes, channels)
    sample = SAMPLES.get((code, width))
    if sample is None or rest or not 0 < bits <= 8 * width:
        what = OTHER_FORMATS.get(code, f"format 0x{code:04x}")
        raise WavError(
            f"chunk fmt: {what}, {bits} bits in frames of {frame_bytes} bytes for {channels} channels, "
            "expected PCM of 8, 16, 24 or 32 bits or float of 32 or 64"
        )
    return Format(sample, channels, rate, frame_bytes, valid if 0 < valid <= bits else bits, mask)


def _extension(body: bytes, bits: int) -> tuple[int, int, int]:
    if len(body) < 40:
        raise WavError(f"chunk fmt: {len(body)} bytes, expected at least 40 for WAVE_FORMAT_EXTENSIBLE")
    valid, mask, code = struct.unpack_from("<HIH", body, 18)
    if body[26:40] != GUID_TAIL:
        raise WavError(f"chunk fmt: format {body[24:40].hex()}, expected PCM or IEEE float")
    return code, valid or bits, mask


def _long_size(body: bytes) -> int:
    if len(body) < 16:
        raise WavError(f"chunk ds64: {len(body)} bytes, expected at least 16")
    return int(struct.unpack_from("<Q", body, 8)[0])


def _unfinished(kind: bytes, size: int) -> bool:
    """Whether the file's own length was never written."""
    written = int.from_bytes(kind[4:8], "little")
    return written == UNKNOWN or written + 8 < size - 1


def _frames(form: Format | None, offset: int, length: int | None, size: int) -> Wav:
    if form is None:
        raise WavError("chunk data: before a chunk fmt, expected after it")
    there = size - offset
    warnings = []
    if length is None:
        warnings.append(f"chunk data: its length was never written, {there} bytes taken")
    elif length > there:
        warnings.append(f"chunk data: {length} bytes, expected the {there} that are there: truncated")
    frames, rest = divmod(there if length is None else min(length, there), form.frame_bytes)
    if rest:
        warnings.append(f"chunk data: {rest} bytes of an incomplete last frame, left out")
    return Wav(form, offset, frames, tuple(warnings))


def channel_names(form: Format) -> list[str]:
    """A name for each channel, from the speaker mask where the file has one."""
    named = [name for bit, name in enumerate(SPEAKERS) if form.mask >> bit & 1]
    if len(named) >= form.channels:
        return named[: form.channels]
    if not named and form.channels <= 2:
        return ["mono"] if form.channels == 1 else ["left", "right"]
    return named + [f"channel {n + 1}" for n in range(len(named), form.channels)]
