"""Errors of the service, in the form that OpenAI's have.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

The message is one line: what, got, expected.
"""

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from flowtok_jax.data.records import printable
from flowtok_jax.runtime.errors import UserError, short_repr
from flowtok_jax.serve.queue import QueueClosedError, QueueFullError

MOST_CHARACTERS = 300  # of a message
INVALID = "invalid_request_error"
BUSY = "rate_limit_error"
OURS = "server_error"
WRAPPERS = ("value_error", "missing")  # errors whose input tells nothing


class RequestError(Exception):
    """An answer other than what was asked for.

    Attributes:
        status: of HTTP.
        message: one line.
        param: name of the field that is wrong.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        *,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers or {}


def error_answer(error: RequestError) -> JSONResponse:
    """Makes the answer of an error."""
    kind = INVALID if error.status < 500 else OURS
    kind = BUSY if error.status == 429 else kind  # OpenAI's clients try again then
    # Clients of OpenAI print it as it is: no line breaks, no controls of terminals.
    message = printable(" ".join(error.message.split()))[:MOST_CHARACTERS]
    told = {"message": message, "type": kind, "param": error.param, "code": None}
    return JSONResponse({"error": told}, error.status, error.headers)


def explain_validation(error: ValidationError) -> RequestError:
    """Returns the first thing that is wrong with a body, as an answer."""
    first = error.errors(include_url=False, include_context=False)[0]
    # Behind a field's name there are the kinds that were tried, as in prompt.str.
    names = [str(part) for part in first["loc"]]
    param = names[0] if names else None
    subject = f"{param}: " if param else ""
    message = subject + first["msg"]  # pydantic's words, as "should be at least 1"
    if first["type"] == "extra_forbidden":
        message = f"{param} is no field of this request"
    elif first["type"] not in WRAPPERS and not first["type"].startswith("json"):
        message += f", got {short_repr(first['input'])}"
    return RequestError(400, message, param)


def to_request_error(error: Exception) -> RequestError:
    """Returns what to answer to an exception of ours, or of what we call."""
    match error:
        case RequestError():
            return error
        case ValidationError():
            return explain_validation(error)
        case QueueFullError():
            headers = {"Retry-After": str(error.retry_after)}
            message = f"{error}; come again in {error.retry_after} seconds"
            return RequestError(429, message, headers=headers)
        case QueueClosedError():
            headers = {"Retry-After": "5", "Connection": "close"}
            return RequestError(503, "the service is ending", headers=headers)
        case TimeoutError():
            return RequestError(504, "it took too long, and was given up")
        case UserError():
            return RequestError(400, str(error))
        case HTTPException():
            return RequestError(error.status_code, error.detail, headers=error.headers)
    return RequestError(500, "the service failed at this request; its log says why")


# Starlette looks handlers up by an exception's class and its bases.
KINDS_OF_ERRORS = (
    RequestError,
    ValidationError,
    QueueFullError,
    QueueClosedError,
    TimeoutError,
    UserError,
    HTTPException,
)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answers an exception; the handler that Starlette calls for all of them."""
    return error_answer(to_request_error(error))
