"""Errors that a client gets instead of an answer, in OpenAI's form."""

from typing import Any

MOST = 300  # characters of a message
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class Refused(Exception):
    """A request that is answered with an error.

    param: the wrong field of the request; status: the HTTP status; code: OpenAI's name of the
    error.
    """

    def __init__(self, text: str, param: str | None = None, *, status: int = 400, code: str | None = None):
        # A message is one line, whatever a request put into it.
        text = " ".join(text.split())
        super().__init__(text if len(text) <= MOST else f"{text[:MOST]} ...")
        self.param, self.status, self.code = param, status, code

    def body(self) -> dict[str, Any]:
        """The JSON body of the error."""
        return error_body(str(self), self.status, self.param, self.code)


def too_long(seconds: float) -> Refused:
    """The error of an answer that was not complete within `seconds`."""
    return Refused(f"the answer took longer than {seconds:g} seconds (--request_seconds)", status=504)


def hung_up() -> Refused:
    """The error of a request whose client left; only the metrics show its status."""
    return Refused("the client has hung up", status=499)


def error_body(text: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form. The status decides its type."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}
