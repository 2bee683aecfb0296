"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}} and an HTTP status.

Source: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from typing import Any

from planish.reference.errors import PlanishError, one_line

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class RequestRefused(PlanishError):  # noqa: N818 (it refuses)
    """A request that is not answered, and why.

    status  of HTTP, 400 unless said. param: the field. code: a word that programs read. kind:
    OpenAI's type of error, by the status unless given.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.kind = kind or kind_of(status)

    def body(self) -> dict[str, Any]:
        """What the client is sent."""
        given = {"param": self.param, "code": self.code, "kind": self.kind}
        return error_body(self.status, str(self), **given)


def kind_of(status: int) -> str:
    """OpenAI's type of an error with this status."""
    return KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_body(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    kind: str | None = None,
) -> dict[str, Any]:
    """The body of an error: also what ends a stream that fails."""
    told = {"message": one_line(message), "type": kind or kind_of(status)}
    return {"error": {**told, "param": param, "code": code}}


def refusal_of(problem: PlanishError, param: str) -> RequestRefused:
    """A problem with a request as a refusal, without the paths of this machine.

    Sampling parameters keep their names; of the rest `param` is the field.
    """
    if isinstance(problem, RequestRefused):
        return problem
    name = problem.name or param
    plain = PlanishError(problem.problem, name=name, expected=problem.expected, found=problem.found)
    return RequestRefused(str(plain), param=param, code="invalid_value")
