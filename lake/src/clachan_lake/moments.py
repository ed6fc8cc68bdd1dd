"""Moments of a lake's history: a commit's id (8 bytes, in text 16 hex digits) holds its time in UTC."""

import re
from datetime import UTC, datetime, timedelta

from persistent.timestamp import TimeStamp


def as_tid(when: str | datetime | bytes) -> bytes:
    """The id behind every commit that was made by `when`: a time, its ISO text (UTC, where it names no zone),
    or an id. Raises ValueError."""
    if isinstance(when, bytes):
        return when
    if isinstance(when, str):
        if re.fullmatch("[0-9a-f]{16}", when):
            return bytes.fromhex(when)
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            raise ValueError(f"moment: {when!r:.80}, expected a time in ISO 8601 or the id of a commit") from None
    at = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    if at.year < 1900:
        raise ValueError(f"moment: {at.isoformat()}, expected a year from 1900 on")
    # a commit's time is finer than a microsecond: all of the last one belong to it
    at += timedelta(microseconds=1)
    seconds = at.second + at.microsecond / 1_000_000
    return TimeStamp(at.year, at.month, at.day, at.hour, at.minute, seconds).raw()  # type: ignore[no-any-return]


def as_time(tid: bytes) -> datetime:
    """When a commit was made; to the microsecond."""
    stamp = TimeStamp(tid)
    whole = datetime(stamp.year(), stamp.month(), stamp.day(), stamp.hour(), stamp.minute(), tzinfo=UTC)
    return whole + timedelta(seconds=stamp.second())
