"""Why something is not done: one exception for each code of the error envelope."""

from typing import ClassVar


class Refusal(Exception):  # noqa: N818 - an answer, not an error of the program
    """Refused, with a message for the caller in the form "<what> <which>: <value>, expected <what>"."""

    code: ClassVar[str] = "invalid"

    def __init__(self, message: str, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.field, self.hint = message, field, hint


class Invalid(Refusal):
    code = "invalid"


class Unauthenticated(Refusal):
    code = "unauthenticated"


class Forbidden(Refusal):
    code = "forbidden"


class NotFound(Refusal):
    code = "not_found"


class Conflict(Refusal):
    code = "conflict"


class TooLarge(Refusal):
    code = "too_large"


class Full(Refusal):
    code = "full"


class Unavailable(Refusal):
    code = "unavailable"


class Timeout(Refusal):
    code = "timeout"
