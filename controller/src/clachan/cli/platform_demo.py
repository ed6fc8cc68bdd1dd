"""`clachan demo`: real recordings through the whole platform.

The recordings are put where the forwarder looks. It ships them to the lake, which makes an array of each. They are
waited for, compared with the files byte for byte, and drawn from the arrays.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clachan.cli.errors import CommandError
from clachan.cli.platform_recordings import Taken, take

if TYPE_CHECKING:
    from clachan_lake.interface import Lake

LAKE = "home.lake"
TRANSFORMATION = "wav"
QUIET_SECONDS = 120
PAUSE_SECONDS = 0.2
SHOWN = 20
Say = Callable[[str, str], None]
IN_PICTURE = 6
IN_PAGE = 24


@dataclass(frozen=True)
class Recording:
    """A file, and the array that it became."""

    tag: str
    bytes: int
    sha256: str
    samples: int
    channels: int
    rate: int
    dtype: str
    peak_hz: float
    """The frequency with the most energy, in the first channel."""
    warnings: list[str]


@dataclass
class Outcome:
    source: str
    recordings: list[Recording] = field(default_factory=list)
    """Those of the input first."""
    errors: dict[str, str] = field(default_factory=dict)
    """Tag -> why it is no array."""
    asked: set[str] = field(default_factory=set)
    """Tags of the recordings of the input."""
    new: int = 0
    picture: Path | None = None
    page: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether something that was asked for now is no array; what failed earlier is only shown."""
        return not self.recordings or not self.asked.isdisjoint(self.errors)


def possible() -> bool:
    """Whether this environment has what reads and draws arrays."""
    return all(importlib.util.find_spec(name) for name in ("clachan_lake", "numpy", "matplotlib"))


def run(home: Path, given: Path | None, quiet: bool = False) -> Outcome:
    """Bring recordings through the lake of the home; see `platform_recordings.take` for which."""
    from clachan.cli.progress import Progress

    demo = home / "demo"
    taken = take(demo, given)
    outcome = Outcome(taken.source, errors=dict(taken.errors), asked=set(taken.asked), new=len(taken.new))
    with _lake(home) as lake, _lake_errors():
        if quiet:
            _collect(lake, taken, outcome, lambda _state, _message: None)
        else:
            with Progress("recordings") as progress:
                _collect(lake, taken, outcome, progress.say)
        if outcome.recordings:
            _draw(lake, demo, outcome)
    return outcome


@contextmanager
def _lake_errors() -> Iterator[None]:
    from clachan_lake.errors import LakeError

    try:
        yield
    except LakeError as error:
        raise CommandError(str(error)) from error


def _lake(home: Path) -> "Lake":
    """The lake at the address that its instance published, with the token that it published (an audited use)."""
    from clachan.client import Client

    try:
        from clachan_lake import open_lake
    except ModuleNotFoundError as error:
        raise CommandError(
            f"package {error.name}: missing, expected it for the demo: pip install 'clachan-lake[pictures]'"
        ) from error
    with Client.from_credentials(home) as client:
        published = client.instance(LAKE, reveal=True).published
    for key in ("url", "token"):
        if not published.get(key):
            raise CommandError(f"instance {LAKE}: has not published {key}, expected it to be started")
    return open_lake(str(published["url"]), token=str(published["token"]))


def _collect(lake: "Lake", taken: Taken, outcome: Outcome, say: Say) -> None:
    """Wait for each recording in turn; one that fails holds up no other."""
    for number, (tag, digest) in enumerate(taken.digests.items()):
        where = f"{number} of {len(taken.digests)} in the lake"
        try:
            described = _wait(lake, tag, lambda said, where=where: say(where, said))
            outcome.recordings.append(_recording(lake, tag, digest, described))
        except _NotArrivedError as error:
            outcome.errors[tag] = str(error)
    say(f"{len(outcome.recordings)} of {len(taken.digests)} in the lake", "")


class _NotArrivedError(Exception):
    """Why a recording is no array."""


def _wait(lake: "Lake", tag: str, say: Any) -> dict[str, Any]:
    """Until the stream is transformed; raises _NotArrivedError when that failed, or nothing moved for long."""
    size, since = -1, time.monotonic()
    while True:
        described = lake.streams[tag].describe() if tag in lake.streams else {}
        followers: list[dict[str, Any]] = described.get("transformations", [])
        change = next((one for one in followers if one["name"] == TRANSFORMATION), {})
        if change.get("state") == "done":
            return described
        if change.get("state") == "failed":
            raise _NotArrivedError(str(change.get("message")))
        if described.get("size", 0) != size:
            size, since = described.get("size", 0), time.monotonic()
        said = f"{size} bytes so far" if described else "not shipped yet"
        if time.monotonic() - since > QUIET_SECONDS:
            raise _NotArrivedError(f"{said}, nothing came for {QUIET_SECONDS} s, expected an array")
        say(f"{tag}: {said}")
        time.sleep(PAUSE_SECONDS)
        lake.refresh()


def _recording(lake: "Lake", tag: str, digest: str, described: dict[str, Any]) -> Recording:
    from clachan_lake import pictures

    stream, array = lake.streams[tag], lake.arrays[tag]
    if stream.sha256() != digest:
        raise _NotArrivedError(f"sha256 of the stream {stream.sha256()}, expected the file's {digest}")
    return Recording(
        tag=tag,
        bytes=stream.size,
        sha256=digest,
        samples=array.shape[0],
        channels=array.shape[1],
        rate=array.attrs["rate"],
        dtype=str(array.dtype),
        peak_hz=pictures.peak_hz(array),
        warnings=[text for one in described["transformations"] for text in one["warnings"]],
    )


def _draw(lake: "Lake", demo: Path, outcome: Outcome) -> None:
    """The first ones, those of the input before others; not again when the pictures show just these."""
    # its cache of fonts would stand in the user's home and outlive `reset`
    os.environ.setdefault("MPLCONFIGDIR", str(demo / "matplotlib"))
    from clachan_lake import pictures

    outcome.picture, outcome.page = demo / "spectrogram.png", demo / "recordings.html"
    chosen = outcome.recordings[:IN_PAGE]
    wanted = json.dumps([[[one.tag, one.sha256] for one in chosen], sorted(outcome.errors)])
    record = demo / "drawn.json"
    if record.is_file() and record.read_text() == wanted and outcome.picture.exists() and outcome.page.exists():
        return
    arrays = [lake.arrays[one.tag] for one in chosen]
    failed = [tag for tag in outcome.errors if tag in lake.streams]
    streams = [lake.streams[tag].describe() for tag in [*(one.tag for one in chosen), *failed]]
    outcome.picture.write_bytes(pictures.draw(arrays[:IN_PICTURE]))
    outcome.page.write_text(pictures.page("Recordings in the lake", arrays, streams))
    record.write_text(wanted)


def print_json(outcome: Outcome) -> None:
    print(json.dumps(asdict(outcome) | {"asked": sorted(outcome.asked)}, indent=2, default=str))


def show(outcome: Outcome) -> None:
    """What went in and what it became."""
    from clachan.cli.output import clean, table

    print(f"\nrecordings  from {clean(outcome.source)}; {outcome.new or 'none'} new")
    table(
        ("RECORDING", "BYTES", "SAMPLES", "CHANNELS", "RATE", "PEAK"),
        [
            (one.tag, one.bytes, one.samples, one.channels, f"{one.rate} Hz", f"{one.peak_hz:.1f} Hz")
            for one in outcome.recordings[:SHOWN]
        ],
    )
    if len(outcome.recordings) > SHOWN:
        print(f"and {len(outcome.recordings) - SHOWN} more")
    print(_totals(outcome))
    for tag, why in outcome.errors.items():
        print(f"error       {clean(tag)}: {clean(why)}")
    if outcome.picture is not None:
        print(f"picture     {outcome.picture}")
        print(f"page        {outcome.page}")


def _totals(outcome: Outcome) -> str:
    found = outcome.recordings
    rates = sorted({one.rate for one in found})
    return (
        f"total       {len(found)} files, {sum(one.bytes for one in found)} bytes, "
        f"{sum(one.samples for one in found)} samples, rate {', '.join(f'{rate} Hz' for rate in rates) or 'none'}; "
        "the streams' sha256 equal the files'"
    )
