"""response_format: what an answer must be. Whether it can be constrained is decided here only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from planish.openai.bodies import Fields, check_fields, refuse


class Schema(Fields):
    """A JSON schema and its name."""

    name: str = "schema"
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """{"type": "json_schema", "json_schema": {"name", "schema"}}, or a type alone."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class Constraint(Fields):
    """An answer is a JSON object, or a value that `schema_` allows."""

    schema_: dict[str, Any] | None = None


class FormatField(Fields):
    """The field of both kinds of bodies."""

    response_format: ResponseFormat | None = None


def read_constraint(values: dict[str, Any]) -> Constraint | None:
    """The constraint of a body, None for text. RequestRefused for one that cannot be kept."""
    wanted = check_fields(FormatField, values).response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_schema" and wanted.json_schema is None:
        problem = "Field required"
        raise refuse("response_format.json_schema", problem, "missing_required_parameter")
    schema = wanted.json_schema.schema_ if wanted.json_schema is not None else None
    constraint = Constraint(schema_=schema)
    require_support(constraint)
    return constraint


def require_support(constraint: Constraint) -> None:
    """Refuse a constraint that no part of this installation keeps: answers are never free where
    they were asked to be constrained."""
    kind = "json_object" if constraint.schema_ is None else "json_schema"
    problem = f"{kind} needs planish[constrained], which this server does not have"
    raise refuse("response_format", problem, "unsupported_parameter")
