"""POST /v1/chat/completions: a conversation and its answer.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from planish.openai.answer import Job
from planish.openai.bodies import check_fields, parse_body, refuse, refuse_unsupported
from planish.openai.choice import Choice, Entry, Piece
from planish.openai.constraint import read_schema
from planish.openai.errors import refusal_of
from planish.openai.jobs import Asked, make_job
from planish.openai.messages import ConversationFields, conversation_of
from planish.openai.sampling import LARGEST, SamplingFields, TopLogprobs
from planish.openai.scores import chat_logprobs
from planish.openai.served import Served
from planish.openai.unsupported import REFUSED, REFUSED_CHAT
from planish.openai.vocabulary import Vocabulary
from planish.reference.errors import PlanishError
from planish.reference.text.chat import Conversation, encode_chat


class ChatFields(SamplingFields):
    """The fields that only chats have. max_completion_tokens is the newer name of max_tokens."""

    max_completion_tokens: int | None = Field(None, ge=0, le=LARGEST)
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None

    @property
    def most(self) -> int | None:
        """New tokens that are asked for, at most."""
        named = self.max_completion_tokens
        return self.max_tokens if named is None else named

    @property
    def listed(self) -> int | None:
        """How many of the likeliest tokens are listed; None: nothing about any token."""
        if self.top_logprobs and not self.logprobs:
            raise refuse("top_logprobs", "only with logprobs: true")
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(frozen=True, kw_only=True)
class ChatForm:
    """Choices as messages; in a stream as what is added to one."""

    vocabulary: Vocabulary
    scored: bool
    prefix: str = "chatcmpl-"
    whole: str = "chat.completion"
    chunk: str = "chat.completion.chunk"

    def start(self, index: int, choice: Choice) -> dict[str, Any]:  # noqa: ARG002 (every form's)
        return self._part(index, {"role": "assistant", "content": ""})

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text}
        return {**self._part(index, delta), "logprobs": self._logprobs(piece.entries)}

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        return {**self._part(index, {}), "finish_reason": choice.finish}

    def complete(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(tuple(choice.listed)),
            "finish_reason": choice.finish,
        }

    def _part(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, entries: tuple[Entry, ...]) -> dict[str, Any] | None:
        return chat_logprobs(self.vocabulary, entries) if self.scored else None


def read_chat(body: bytes, served: Served) -> Job:
    """What a body of /v1/chat/completions asks for. Raises RequestRefused."""
    values = parse_body(body)
    fields = check_fields(ChatFields, values)
    served.check_model(fields.model)
    refuse_unsupported(values, {**REFUSED, **REFUSED_CHAT})
    fields.check_stream()
    schema, listed = read_schema(values), fields.listed
    conversation = conversation_of(check_fields(ConversationFields, values), values, served)
    prompt = encode_conversation(conversation, served)
    asked = Asked(param="messages", prompts=[prompt], max_tokens=fields.most, logprobs=listed)
    form = ChatForm(vocabulary=served.vocabulary, scored=listed is not None)
    return make_job(served, form, fields, asked, schema)


def encode_conversation(conversation: Conversation, served: Served) -> list[int]:
    """The prompt of a conversation; refused with the template's words if it refuses it."""
    assert served.template is not None
    served.check_length("messages", sum(len(one["content"]) for one in conversation.messages))
    try:
        return encode_chat(served.tokenizer, served.template, conversation)
    except PlanishError as problem:
        raise refusal_of(problem, "messages") from None
