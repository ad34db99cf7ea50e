"""Errors of the API, in the shape of OpenAI's."""

from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused or has failed.

    Attributes:
        status: of HTTP.
        message: for the person; it says what is wrong and what to do.
        param: the field of the request that is to blame.
        code: a word by which programs tell errors apart.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def shutting_down() -> ApiError:
    """The error of a request that comes, or is still running, when the server ends."""
    return ApiError(503, "The server is shutting down. Ask again when it is back.", code="shutting_down", retry_after=5)
