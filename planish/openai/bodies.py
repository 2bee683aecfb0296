"""From the bytes of a body to checked fields; everything else is a refusal that names the field.

Fields are of three lists: those that planish does, those that it ignores as they do not change the
answer (user, metadata, store and names that nobody knows), and those that it refuses, because the
answer would be another one than was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, ValidationError

from planish.openai.errors import RequestRefused
from planish.reference.json import finite, unique_keys

DEEPEST = 64  # levels of lists and objects

Checked = TypeVar("Checked", bound="Fields")


class Fields(BaseModel):
    """Fields of a body: of their types exactly, and others are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class FirstOnly(FailFast):
    """Of a list one error is enough: a long one may have millions."""

    __hash__ = object.__hash__  # which types of optional fields need


def parse_body(body: bytes) -> dict[str, Any]:
    """The object of a body; refused: what is no JSON, a key that occurs twice, NaN, a lone
    surrogate, more than DEEPEST levels."""
    try:
        value = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=unique_keys,
            parse_float=finite,
            parse_constant=finite,
        )
    except RecursionError:
        raise RequestRefused(f"the body has more than {DEEPEST} levels") from None
    except ValueError as problem:
        raise RequestRefused(f"the body is not JSON: {problem}", code="invalid_json") from None
    if not isinstance(value, dict):
        found = type(value).__name__
        raise RequestRefused(f"the body is not a JSON object, found {found}")
    _check_values(value)
    return value


def _check_values(value: dict[str, Any]) -> None:
    """Refuse what is too deep or not text; without recursion."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        if not level:
            return
        level = [inner for outer in level for inner in _check_inside(outer)]
    raise RequestRefused(f"the body has more than {DEEPEST} levels")


def _check_inside(outer: Any) -> list[Any]:
    """The lists and objects in one of them, whose keys and texts are checked."""
    if isinstance(outer, dict):
        texts = [*outer, *(item for item in outer.values() if isinstance(item, str))]
        inner = [item for item in outer.values() if isinstance(item, dict | list)]
    else:
        texts = [item for item in outer if isinstance(item, str)]
        inner = [item for item in outer if isinstance(item, dict | list)]
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            problem = "the body is not text: half of a surrogate pair"
            raise RequestRefused(problem, code="invalid_json") from None
    return inner


def refuse_unsupported(values: Mapping[str, Any], refused: Mapping[str, Collection[Any]]) -> None:
    """Refuse a field that is not done, unless its value asks for nothing: null, or one of those
    beside its name."""
    for name, neutral in refused.items():
        value = values.get(name)
        if value is not None and value not in neutral:
            allowed = ", ".join(map(json.dumps, neutral))
            only = f" other than {allowed}" if allowed else ""
            problem = f"{name}{only} is not supported"
            raise RequestRefused(problem, param=name, code="unsupported_parameter")


def check_fields(model: type[Checked], values: Mapping[str, Any]) -> Checked:
    """The fields of a body by their model; refused: the first that is of another type or range."""
    try:
        return model.model_validate(values)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise RequestRefused(f"{name}: {first['msg']}", param=name, code=code) from None


def refuse(param: str, problem: str, code: str = "invalid_value") -> RequestRefused:
    """The refusal of one field's value."""
    return RequestRefused(f"{param}: {problem}", param=param, code=code)
