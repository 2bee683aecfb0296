"""response_format: what an answer must be. Whether it can be constrained is decided here only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from planish.openai.bodies import Fields, check_fields, refuse
from planish.openai.errors import refusal_of
from planish.openai.served import Served
from planish.reference.errors import TokenizerError
from planish.reference.text.constraint import Constraint

ANY_OBJECT = {"type": "object"}


class Schema(Fields):
    """A JSON schema and its name."""

    name: str = "schema"
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """{"type": "json_schema", "json_schema": {"name", "schema"}}, or a type alone."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class FormatField(Fields):
    """The field of both kinds of bodies."""

    response_format: ResponseFormat | None = None


def read_schema(values: dict[str, Any]) -> dict[str, Any] | None:
    """The schema that a body's answers must keep, None for text."""
    wanted = check_fields(FormatField, values).response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.json_schema is None:
        problem = "Field required"
        raise refuse("response_format.json_schema", problem, "missing_required_parameter")
    return wanted.json_schema.schema_


def constraints_of(
    schema: dict[str, Any] | None, served: Served, ends: Sequence[int], count: int
) -> Sequence[Constraint | None]:
    """The constraints of `count` answers; refused if they cannot be kept: answers are never free
    where they were asked to be constrained."""
    if schema is None:
        return [None] * count
    try:
        grammars = served.grammars
    except ImportError as problem:
        if problem.name != "llguidance":
            raise
        needed = "needs planish[constrained], which this server does not have"
        raise refuse("response_format", needed, "unsupported_parameter") from None
    except TokenizerError as problem:
        raise refusal_of(problem, "response_format") from None
    return grammars.prepare(schema, ends, count)
