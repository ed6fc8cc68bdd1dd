"""What can go wrong between a client and its controller; the text of each is fit for a user."""


class ClientError(Exception):
    """Base of all errors of the SDK."""


class NoCredentialsError(ClientError):
    """Nothing says which controller, or with which token."""


class UnreachableError(ClientError):
    """The controller did not answer: no connection, connection lost, or too slow. Worth trying again later."""


class UntrustedError(ClientError):
    """The TLS handshake failed: the controller is not who it should be, or it refused our certificate."""


class BadAnswerError(ClientError):
    """What answered does not speak the contract: a proxy, another service, another version."""


class ApiError(ClientError):
    """The controller refused. `code` is one of invalid, unauthenticated, forbidden, not_found, conflict, too_large,
    unavailable, timeout, full; `field` names the part of the request at fault; `status` is the HTTP status."""

    def __init__(self, code: str, message: str, field: str | None, hint: str | None, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint
        self.status = status
