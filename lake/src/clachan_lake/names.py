"""Names of streams and arrays: free text that people and fluentd write; never used as a path of a file."""

from clachan_lake.errors import TakenError

NAME_BYTES = 1024
ID_BYTES = 256


def fits(text: object, limit: int) -> bool:
    """Whether it is text of at most `limit` bytes, without halves of characters."""
    try:
        return isinstance(text, str) and len(text.encode()) <= limit
    except UnicodeEncodeError:
        return False


def check_name(kind: str, name: str) -> str:
    """The name itself; raises TakenError for one that is empty, too long or not printable."""
    if not isinstance(name, str) or not name or not name.isprintable() or len(name.encode()) > NAME_BYTES:
        raise TakenError(f"{kind} name: {name!r:.80}, expected 1-{NAME_BYTES} bytes of printable text")
    return name


def check_chunk_id(chunk_id: str | None) -> None:
    """Raises TakenError for an id that is empty, too long or not printable."""
    if chunk_id is not None and (not 0 < len(chunk_id.encode()) <= ID_BYTES or not chunk_id.isprintable()):
        raise TakenError(f"chunk id: {chunk_id!r:.80}, expected 1-{ID_BYTES} bytes of printable text")
