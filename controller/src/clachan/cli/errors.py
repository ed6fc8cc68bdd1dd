"""How a verb ends, and how errors become one line and a status."""

import os
import sys
from typing import NoReturn

DONE, FAILED, WRONG_USE, STILL_WAITING, INTERRUPTED = 0, 1, 2, 3, 130


class CommandError(Exception):
    """Ends the command with one line on standard error and an exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def explain(error: Exception) -> int | None:
    """Say an error that a user can understand, and give the exit status; None when it is another."""
    if isinstance(error, CommandError):
        say(str(error))
        return error.status
    if isinstance(error, OSError):
        say(f"{error.filename or 'system'}: {error.strerror or error}")
        return FAILED
    # imported only now: when the client was never loaded, the error is not the client's
    from clachan.client import ApiError, ClientError

    if not isinstance(error, ClientError):
        return None
    say(str(error))
    if isinstance(error, ApiError):
        from clachan.cli.output import clean

        if error.field and "." in error.field and error.field.rpartition(".")[2] not in error.message:
            print(f"  at: {clean(error.field)}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {clean(error.hint)}", file=sys.stderr)
    return FAILED


def say(message: str) -> None:
    from clachan.cli.output import clean

    print(f"clachan: {clean(message)}", file=sys.stderr)


def leave(status: int) -> NoReturn:
    """Flush, and when nobody reads any more, end without Python's own complaint about it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or FAILED
    sys.exit(status)
