"""How a verb ends when it does not succeed."""

DONE, FAILED, WRONG_USE, STILL_WAITING, INTERRUPTED = 0, 1, 2, 3, 130


class CommandError(Exception):
    """Ends the command with one line on standard error and an exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status
