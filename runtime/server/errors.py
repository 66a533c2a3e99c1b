"""OpenAI's error bodies: what a client is told when something is refused or fails.

Source: platform.openai.com/docs/guides/error-codes.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from tokc.errors import EngineStopped, RequestRefused, TokcError

Json = dict[str, Any]

INVALID, RATE, SERVER = "invalid_request_error", "rate_limit_error", "server_error"


class ApiError(TokcError):
    """Refuse a request with a status, and with OpenAI's `type`, `param` and `code`."""

    def __init__(
        self,
        status: int,
        problem: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the parts; `headers` go into the response."""
        super().__init__(problem, where=param)
        self.status, self.param, self.code, self.kind = status, param, code, kind
        self.headers = dict(headers or {})

    @property
    def body(self) -> Json:
        """Return the JSON that the client reads."""
        return {"error": {"message": self.problem, "type": self.kind, "param": self.param, "code": self.code}}


def api_error(error: TokcError) -> ApiError:
    """Return the error as a client is told it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestRefused):
        message = error.problem if error.hint is None else f"{error.problem}; {error.hint}"
        return ApiError(HTTPStatus.BAD_REQUEST, message, param=error.where)
    if isinstance(error, EngineStopped):
        return unavailable(error.problem, code="engine_failed")
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, error.problem, kind=SERVER)


def invalid(problem: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """Return the refusal of a parameter's value."""
    return ApiError(HTTPStatus.BAD_REQUEST, problem, param=param, code=code)


def unavailable(problem: str, *, code: str, retry_after_s: int = 5) -> ApiError:
    """Return the refusal of a server that stops or failed; another one may answer."""
    headers = {"Retry-After": str(retry_after_s)}
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, problem, code=code, kind=SERVER, headers=headers)


def too_many(problem: str, *, retry_after_s: int, code: str = "rate_limit_exceeded") -> ApiError:
    """Return the refusal of a client that should come back later."""
    headers = {"Retry-After": str(retry_after_s)}
    return ApiError(HTTPStatus.TOO_MANY_REQUESTS, problem, code=code, kind=RATE, headers=headers)
