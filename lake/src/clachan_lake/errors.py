"""What can go wrong with a lake. Each error is also the builtin that a caller would catch, and says the remedy."""

from pickle import UnpicklingError

from ZODB.POSException import POSError


class LakeError(Exception):
    """Any error of this package."""


class LakeBusyError(LakeError, BlockingIOError):
    """Another process has the folder open."""


class FormatError(LakeError, ValueError):
    """What was opened is not a lake, or one of a format that this version does not read."""


class MissingError(LakeError, KeyError):
    """No stream or array of that name."""

    def __str__(self) -> str:  # KeyError shows its argument's repr
        return str(self.args[0]) if self.args else ""


class TakenError(LakeError, ValueError):
    """The name is in use, or not one that a stream, an array or a chunk can have."""


class TransactionError(LakeError, RuntimeError):
    """A write outside a transaction, or a transaction inside another."""


class LakeReadOnlyError(LakeError, PermissionError):
    """The lake was opened for reading."""


class ChunkError(LakeError, ValueError):
    """A chunk that contradicts the stream: same id and other content, or another position."""

    def __init__(self, message: str, size: int | None = None) -> None:
        super().__init__(message)
        self.size = size


class TruncatedError(LakeError, LookupError):
    """Bytes of a stream that are not kept any more; `start` is the first position that is."""

    def __init__(self, message: str, start: int) -> None:
        super().__init__(message)
        self.start = start


class CorruptError(LakeError, OSError):
    """A chunk on disk whose checksum does not hold, or whose file is missing."""


class MappingError(LakeError, MemoryError):
    """The kernel maps no more into this process's memory."""


class PackedError(LakeError, LookupError):
    """A time before the last pack, whose history is gone."""


class RefusedClassError(LakeError, UnpicklingError, POSError):  # type: ignore[misc]
    """A database record names a class that no lake contains; nothing of it was loaded. A POSError, so that ZODB raises
    it as it is."""


class RemoteError(LakeError, ConnectionError):
    """The lake's server refused the request or cannot be reached."""


class RequestError(RemoteError, ValueError):
    """The lake's server refused what was asked of it: a wrong value, or more than it takes."""


class JobError(LakeError, RuntimeError):
    """A job that ended without a result; `state` says how."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class UntrustedError(LakeError, ValueError):
    """A result that runs code when it is opened; nobody said that he trusts it."""


class LateError(LakeError, ValueError):
    """What was said of a job by one who does not have it any more."""
