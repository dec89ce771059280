"""One error for whatever a client can meet, and the shape each dialect gives it.

Shapes: OpenAI's `{"error": {"message", "type", "param", "code"}}`, Anthropic's `{"type": "error", "error": {"type",
"message"}}`, Ollama's `{"error": "message"}`.
"""

from __future__ import annotations

from typing import Any

from qwen3.errors import (
    ModelNotFoundError,
    OutOfMemoryError,
    QueueFullError,
    Qwen3Error,
    RemoteError,
    UsageError,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """What an HTTP request ends with instead of an answer.

    status: HTTP status. param: the field, or the fields, as the client spelt them. code: a short machine-readable
    reason. retry_after: seconds after which the same request may succeed; None: it would not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """The HTTP form of an error of the package; whatever is not one of ours says nothing of its inside."""
        match error:
            case ApiError():
                return error
            case QueueFullError():
                return cls(429, str(error), code="queue_full", retry_after=1.0)
            case UsageError():
                return cls(400, str(error))
            case ModelNotFoundError():
                return cls(404, str(error), "model", "model_not_found")
            case OutOfMemoryError():
                return cls(503, str(error), "model", "out_of_memory")
            case RemoteError():
                return cls(503, str(error), "model", "remote_error", retry_after=10.0)
            case Qwen3Error():
                return cls(500, str(error))
        return cls(500, "internal error; the server's log has the details under this request's id")


def shape(error: ApiError, dialect: str) -> dict[str, Any]:
    """The body of an error. dialect: "openai", "anthropic" or "ollama"."""
    if dialect == "ollama":
        return {"error": error.message}
    if dialect == "anthropic":
        kind = "api_error" if error.status >= 500 and error.status != 503 else error.type
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def dialect_of(path: str) -> str:
    """Which shape the errors of a path have."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"
