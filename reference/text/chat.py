"""A conversation as token ids: the model's chat template, rendered and encoded.

    messages -> mark the special tokens that users wrote -> render the template -> split the text
    at the marks -> encode without the tokens that the tokenizer adds to every text

The template writes the special tokens that begin and end turns, and the beginning of the text. A
user who writes <|im_end|> means its letters: a mark, a private-use character, is put inside, so
that neither the template nor the tokenizer takes it for the token, and what was marked is encoded
as plain text. Content without such literals is encoded as if this step did not exist.

Sources: https://huggingface.co/docs/transformers/chat_templating; transformers' apply_chat_template
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from planish.reference.errors import ChatError, PromptError
from planish.reference.model.config import ModelConfig
from planish.reference.text.chat_template import TURN, ChatTemplate, special_tokens
from planish.reference.text.renderer import RENDERER
from planish.reference.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

SENTINEL = "CONTINUE_FINAL_MESSAGE_TAG "  # as in transformers; the space shows whether it is cut
USERS = frozenset({"user", "tool"})  # the roles whose text comes from outside
PRIVATE = range(0xF0000, 0xFFFFE)  # characters that no text has a meaning for
SECONDS, BYTES = 10, 2**30  # processor time and addresses of one rendering


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a template is given. messages: {"role": ..., "content": ...} and what else it reads.

    tools: JSON schemas of functions. variables: more that the template reads, such as
    enable_thinking. continue_final_message: the model goes on within the last message.
    plain_roles: the roles in whose messages special tokens are text.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    plain_roles: frozenset[str] = USERS


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversation: Conversation,
    now: datetime | None = None,
) -> list[int]:
    """Token ids of a conversation, which end where the assistant's text begins.

    Raises ChatError if the template cannot render it, PromptError if it is not text.
    """
    names = control_tokens(tokenizer, template.source(conversation.tools is not None))
    mark = _unused_character(conversation)
    marked = _mark_conversation(conversation, names, mark)
    text = render_chat(template, marked, now)
    for escaped in (json.dumps(mark)[1:-1], repr(mark)[1:-1]):  # by tojson, or as a list is shown
        text = text.replace(escaped, mark)
    return encode_marked(tokenizer, text, names, mark)


def render_chat(
    template: ChatTemplate, conversation: Conversation, now: datetime | None = None
) -> str:
    """The text of a conversation; `now` is what templates that name the date take for it.

    Raises ChatError with the template's own words if it refuses the conversation (roles must
    alternate, say), and if it is no template or takes too long, too much memory, or what the
    sandbox forbids.
    """
    messages = _plain_messages(conversation.messages, template.path)
    if conversation.continue_final_message:
        messages = _with_sentinel(messages, template.path)
    variables = {
        **template.special_tokens,
        **conversation.variables,
        "messages": messages,
        "tools": conversation.tools,
        "documents": conversation.documents,
        "add_generation_prompt": not conversation.continue_final_message,
    }
    text = _render(template, conversation.tools is not None, variables, now)
    return _cut_at_sentinel(text, template.path) if conversation.continue_final_message else text


def _plain_messages(messages: Sequence[Message], path: Path) -> list[dict[str, Any]]:
    """The messages without the keys that are null, on which templates fail."""
    if not messages:
        raise ChatError("is empty", path=path, name="messages", expected="at least one message")
    return [{key: value for key, value in one.items() if value is not None} for one in messages]


def _with_sentinel(messages: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The messages with a sentinel after the text of the last one."""
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, str):
        return [*messages[:-1], {**last, "content": content + SENTINEL}]
    parts = list(content) if isinstance(content, list) else []
    for place in reversed(range(len(parts))):
        if isinstance(parts[place], Mapping) and isinstance(parts[place].get("text"), str):
            parts[place] = {**parts[place], "text": parts[place]["text"] + SENTINEL}
            return [*messages[:-1], {**last, "content": parts}]
    raise ChatError("has no text to continue", path=path, name="the last message")


def _cut_at_sentinel(text: str, path: Path) -> str:
    """The text up to the sentinel, without the spaces before it if the template trims contents."""
    place = text.rfind(SENTINEL.strip())
    if place < 0:
        problem = "the template leaves out the message that is to be continued"
        raise ChatError(problem, path=path, name="chat_template")
    kept = text[:place]
    return kept if text[place:].startswith(SENTINEL) else kept.rstrip()


def _render(
    template: ChatTemplate, with_tools: bool, variables: Mapping[str, Any], now: datetime | None
) -> str:
    """Render in a process of limited time and memory; ChatError unless it returns a text."""
    limits, moment = (SECONDS, BYTES), now and now.isoformat()
    request = {"template": template.source(with_tools), "variables": variables}
    try:
        content = json.dumps({**request, "now": moment, "limits": limits}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ChatError(f"is not JSON: {problem}", path=template.path, name="messages") from None
    answer = _ask(content.encode(), template.path)
    if "text" in answer:
        return answer["text"]
    where: dict[str, Any] = {"path": template.path, "name": "chat_template"}
    if "refusal" in answer:
        raise ChatError(f"refuses the conversation: {answer['refusal']}", **where)
    raise ChatError(f"cannot be rendered: {answer['problem']}", **where)


def _ask(content: bytes, path: Path) -> dict[str, str]:
    """The worker's answer to a request; a child that was killed has used up its limits."""
    where: dict[str, Any] = {"path": path, "name": "chat_template"}
    try:
        answer = RENDERER.ask(content)
    except OSError as problem:  # TimeoutError, too
        raise ChatError(f"cannot be rendered: {problem}", **where) from None
    if "killed" in answer:
        limits = f"{SECONDS} s or {BYTES // 2**20} MiB"
        raise ChatError(f"cannot be rendered: it takes more than {limits}", **where)
    return answer


def control_tokens(tokenizer: Tokenizer, source: str) -> list[str]:
    """The texts of tokens that mean more than their letters, the longest first.

    These are the special tokens, and of the other added ones those that the template writes
    (<think>, say); other added tokens are ways to write text, such as Gemma's runs of spaces.
    """
    added = tokenizer.inner.get_added_tokens_decoder().values()
    named = {
        one.content
        for one in added
        if one.content and (one.special or (one.content in source and not one.content.isspace()))
    }
    return sorted(named, key=lambda text: (-len(text), text))


def _unused_character(conversation: Conversation) -> str:
    """A private-use character that occurs nowhere in the conversation."""
    given = json.dumps([conversation.messages, conversation.tools], default=str, ensure_ascii=False)
    given += json.dumps([conversation.documents], default=str, ensure_ascii=False)
    return next(mark for code in PRIVATE if (mark := chr(code)) not in given)


def _mark_conversation(conversation: Conversation, names: Sequence[str], mark: str) -> Conversation:
    """The conversation with a mark inside each special token that a user wrote."""
    if not names:
        return conversation
    pattern = re.compile("|".join(map(re.escape, names)))

    def marked(value: Any) -> Any:
        return _map_texts(value, lambda text: pattern.sub(lambda m: _break(m[0], mark), text))

    plain = conversation.plain_roles
    messages = [
        {key: item if key == "role" else marked(item) for key, item in one.items()}
        if one.get("role") in plain
        else one
        for one in conversation.messages
    ]
    tools, documents = marked(conversation.tools), marked(conversation.documents)
    return replace(conversation, messages=messages, tools=tools, documents=documents)


def _break(text: str, mark: str) -> str:
    """A special token's text with the mark after its first character."""
    return text[0] + mark + text[1:]


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each of its texts changed; keys are kept."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value


def encode_marked(tokenizer: Tokenizer, text: str, names: Sequence[str], mark: str) -> list[int]:
    """Ids of a rendered text: what is marked is encoded as plain text, the rest as it is.

    A mark that the template cut away from its token still separates what is on its two sides.
    """
    if mark not in text:
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for piece, plain in _split_at_marks(text, names, mark):
        ids += _encode_piece(tokenizer, piece, plain=plain, first=not ids)
    return ids


def _split_at_marks(text: str, names: Sequence[str], mark: str) -> Iterator[tuple[str, bool]]:
    """The parts of a text without marks, and whether each is a literal that was marked."""
    literals = "|".join(re.escape(_break(name, mark)) for name in names)
    for number, piece in enumerate(re.split(f"({literals})|{mark}", text)):
        if piece:
            yield piece.replace(mark, ""), number % 2 == 1


def _encode_piece(tokenizer: Tokenizer, piece: str, *, plain: bool, first: bool) -> list[int]:
    """Ids of a part; a special token that is meant as text gives other tokens than itself."""
    encode = _encode if first else _encode_after_newline
    ids = encode(tokenizer, piece, plain)
    if not plain or tokenizer.inner.token_to_id(piece) not in ids:
        return ids
    if len(piece) == 1:
        expected = "a text that the tokenizer can write without that token"
        raise PromptError("is a token in every text", name=repr(piece), expected=expected)
    ids = _encode_piece(tokenizer, piece[:1], plain=plain, first=first)
    return ids + _encode_piece(tokenizer, piece[1:], plain=plain, first=False)


def _encode(tokenizer: Tokenizer, text: str, plain: bool) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, parse_special_tokens=not plain)


def _encode_after_newline(tokenizer: Tokenizer, text: str, plain: bool) -> list[int]:
    """Ids of what continues a text.

    SentencePiece puts a space before a text; after a newline, which is then removed, it does not.
    """
    newline = _encode(tokenizer, "\n", plain)
    ids = _encode(tokenizer, "\n" + text, plain)
    return (
        ids[len(newline) :] if ids[: len(newline)] == newline else _encode(tokenizer, text, plain)
    )


def unite_ends(config: ModelConfig, tokenizer: Tokenizer, model: str | Path) -> ModelConfig:
    """The config whose ends of text include the tokenizer's eos_token.

    Some configs list <|endoftext|> only, though the model ends its turns with the tokenizer's
    <|im_end|>; and would write both sides of the conversation.
    """
    named = special_tokens(Path(model))
    texts = (named.get("eos_token"), named.get(TURN))
    ids = (tokenizer.inner.token_to_id(text) for text in texts if text)
    found = {i for i in ids if i is not None and i < config.vocab_size}
    more = sorted(found - set(config.eos_token_ids))
    return replace(config, eos_token_ids=(*config.eos_token_ids, *more)) if more else config
