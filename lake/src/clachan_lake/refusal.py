"""Refusals: every answer that is not a success has one form, the controller's.

`{"error": {"code", "message", "field", "hint"}}`
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

CODES = {
    400: "invalid",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "invalid",
    408: "timeout",
    409: "conflict",
    411: "invalid",
    412: "conflict",
    413: "too_large",
    415: "invalid",
    416: "invalid",
    422: "invalid",
    429: "busy",
    500: "unavailable",
    503: "unavailable",
    507: "unavailable",
}


class RefusedError(Exception):
    """A request that is answered with a status other than success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.hint = hint
        self.headers = headers


def answer(error: RefusedError) -> JSONResponse:
    return _answer(error.status, str(error), error.field, error.hint, error.headers)


def _answer(
    status: int, message: str, field: str | None = None, hint: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    error = {"code": CODES.get(status, "invalid"), "message": message, "field": field, "hint": hint}
    return JSONResponse({"error": error}, status, headers)


def install(app: FastAPI) -> None:
    """Give every failure of the application this form."""

    @app.exception_handler(RefusedError)
    async def refused(_request: Request, error: RefusedError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return _answer(400, f"parameter {field}: {first['msg']}", field)

    @app.exception_handler(HTTPException)
    async def framework(_request: Request, error: HTTPException) -> JSONResponse:
        return _answer(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_request: Request, _error: Exception) -> JSONResponse:
        return _answer(500, "the lake failed to answer; its log has the reason")
