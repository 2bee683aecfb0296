"""The messages of a chat body as what the model's template is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from planish.openai.bodies import Fields, FirstOnly, refuse
from planish.openai.served import Served
from planish.reference.errors import ChatError
from planish.reference.text.chat import Conversation

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
RESERVED = frozenset(
    "messages tools documents add_generation_prompt continue_final_message chat_template".split()
)


class Function(Fields):
    """A call's function: its arguments are an object written as a text."""

    name: str
    arguments: str | None = None


class ToolCall(Fields):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Message(Fields):
    """One message. content: null, a text, or parts, of which only texts are read."""

    role: Role
    content: Any = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], FirstOnly()] | None = None
    tool_call_id: str | None = None


class ToolFunction(Fields):
    name: str


class Tool(Fields):
    """A function that the model may call, in JSON schema; the template is given all of it."""

    type: Literal["function"]
    function: ToolFunction


class ConversationFields(Fields):
    """The fields of a body that its template reads."""

    messages: Annotated[list[Message], FirstOnly(), Field(min_length=1)]
    tools: Annotated[list[Tool], FirstOnly()] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    documents: Annotated[list[dict[str, Any]], FirstOnly()] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


def conversation_of(
    fields: ConversationFields, values: Mapping[str, Any], served: Served
) -> Conversation:
    """What the template is given. values: the body, whose tools it gets as they are."""
    if served.template is None:
        problem = "this is a base model without a chat template; use /v1/completions"
        raise refuse("messages", problem, "model_not_supported")
    with_tools = bool(fields.tools) and fields.tool_choice != "none"
    source = source_of(served, with_tools)
    check_prompt_end(fields)
    return Conversation(
        messages=[read_message(one, i, source) for i, one in enumerate(fields.messages)],
        tools=values["tools"] if with_tools else None,
        documents=fields.documents or None,
        variables=variables_of(fields, source),
        continue_final_message=bool(fields.continue_final_message),
    )


def source_of(served: Served, with_tools: bool) -> str:
    """The template's source."""
    assert served.template is not None
    try:
        return served.template.source(with_tools)
    except ChatError as problem:
        raise refuse("messages", f"no chat template: {problem.problem}") from None


def check_prompt_end(fields: ConversationFields) -> None:
    """A prompt ends where the assistant's text begins, or goes on."""
    if fields.continue_final_message and fields.add_generation_prompt:
        raise refuse("add_generation_prompt", "expected false with continue_final_message")
    if fields.add_generation_prompt is False and not fields.continue_final_message:
        raise refuse("add_generation_prompt", "false is not supported", "unsupported_parameter")


def variables_of(fields: ConversationFields, source: str) -> dict[str, Any]:
    """chat_template_kwargs, and the reasoning_effort if the template reads it."""
    variables = dict(fields.chat_template_kwargs or {})
    for name in RESERVED & set(variables):
        raise refuse(f"chat_template_kwargs.{name}", "this name is a field of the body")
    effort = fields.reasoning_effort
    if effort is not None:
        if "reasoning_effort" not in source:
            problem = "the model's template does not read it"
            raise refuse("reasoning_effort", problem, "unsupported_parameter")
        variables["reasoning_effort"] = effort
    return variables


def read_message(message: Message, number: int, source: str) -> dict[str, Any]:
    """One message with the keys that it has; a template that knows no developer gets a system."""
    where = f"messages.{number}"
    role = message.role
    if role == "developer" and "developer" not in source:
        role = "system"
    more = {
        "name": message.name,
        "reasoning_content": message.reasoning_content,
        "tool_call_id": message.tool_call_id,
    }
    calls = [
        read_call(one, f"{where}.tool_calls.{i}") for i, one in enumerate(message.tool_calls or ())
    ]
    return {
        "role": role,
        "content": read_content(message.content, f"{where}.content"),
        **{key: value for key, value in more.items() if value is not None},
        **({"tool_calls": calls} if calls else {}),
    }


def read_content(content: Any, where: str) -> str:
    """The text of a message: null is none, and parts are joined by newlines, as in vLLM."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refuse(where, "expected a text or a list of parts")
    return "\n".join(read_part(part, f"{where}.{i}") for i, part in enumerate(content))


def read_part(part: Any, where: str) -> str:
    """The text of a part; images, sounds and files are refused."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "input_text", "output_text", "refusal"):
        found = f"found {kind!r:.40}"
        raise refuse(where, f"this model reads parts of type text only, {found}")
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise refuse(f"{where}.text", "expected a text")
    return text


def read_call(call: ToolCall, where: str) -> dict[str, Any]:
    """A call with its arguments as an object: templates write them as JSON themselves."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise refuse(f"{where}.function.arguments", "expected a JSON object as a text")
    function = {"name": call.function.name, "arguments": arguments}
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": call.type, "function": function}
