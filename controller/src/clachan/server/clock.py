"""Times are UTC ISO texts of one width, so that they sort as text: `2026-01-31T12:00:00.000Z`."""

from datetime import UTC, datetime, timedelta


def text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def now() -> str:
    return text(datetime.now(UTC))


def after(seconds: float, start: str | None = None) -> str:
    """The time `seconds` (may be negative) after `start`, default now."""
    return text((parse(start) if start else datetime.now(UTC)) + timedelta(seconds=seconds))


def parse(value: str) -> datetime:
    """An ISO 8601 time with its zone; raises ValueError when it has none."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"time {value!r}, expected ISO 8601 with a zone, like 2026-01-31T12:00:00Z")


def normal(value: str) -> str:
    """The one form of a time that came from outside."""
    return text(parse(value))
