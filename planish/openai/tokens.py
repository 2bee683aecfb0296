"""Text to token ids and back, for clients without a tokenizer: lm_eval needs no other.

/tokenize        vLLM's {prompt, add_special_tokens}, {messages}; llama.cpp's {content, add_special}
/detokenize      {tokens}
/tokenizer_info  special tokens and the chat template
/apply-template  {messages} as the text that the model is given

Sources: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html;
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from typing import Any

from planish.openai.bodies import Fields, check_fields, parse_body, refuse, refuse_unsupported
from planish.openai.chat import encode_conversation
from planish.openai.errors import refusal_of
from planish.openai.messages import ConversationFields, conversation_of
from planish.openai.sampling import check_ids
from planish.openai.served import Served
from planish.reference.errors import PlanishError
from planish.reference.text.chat import render_chat
from planish.reference.text.tokenizer_file import library_errors

LONGEST_TEXT = 2**21  # characters: tokenizing takes 250 bytes of memory and about 2 us for each


class TokenizeFields(Fields):
    """A text of either name. add_special_tokens: with those that every text gets, as vLLM does
    unless said; llama.cpp's name for it, add_special, is false unless said."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeFields(Fields):
    model: str | None = None


def tokenize(body: bytes, served: Served) -> dict[str, Any]:
    """Token ids of a text or of a conversation."""
    values = parse_body(body)
    fields = check_fields(TokenizeFields, values)
    served.check_model(fields.model)
    refuse_unsupported(values, {"chat_template": ()})
    if values.get("messages") is not None:
        conversation = conversation_of(check_fields(ConversationFields, values), values, served)
        ids = encode_conversation(conversation, served)
    else:
        ids = encode_text(fields, served)
    found: dict[str, Any] = {"tokens": ids}
    if fields.with_pieces:
        found["tokens"] = [{"id": i, "piece": served.vocabulary.text_of(i)} for i in ids]
    if fields.return_token_strs:
        found["token_strs"] = [served.vocabulary.text_of(i) for i in ids]
    return {**found, "count": len(ids), "max_model_len": served.context}


def encode_text(fields: TokenizeFields, served: Served) -> list[int]:
    """Ids of the text in one of its two fields; of an empty one there may be none."""
    vllm = fields.prompt is not None
    text = fields.prompt if vllm else fields.content
    if text is None:
        raise refuse("prompt", "Field required", "missing_required_parameter")
    if len(text) > LONGEST_TEXT:
        problem = f"has {len(text)} characters, more than {LONGEST_TEXT}: send it in parts"
        raise refuse("prompt" if vllm else "content", problem)
    special = fields.add_special_tokens is not False if vllm else bool(fields.add_special)
    if not text and not served.tokenizer.inner.encode(text, add_special_tokens=special).ids:
        return []
    parse = fields.parse_special is not False
    try:
        return served.tokenizer.encode(text, add_special_tokens=special, parse_special_tokens=parse)
    except PlanishError as problem:
        raise refusal_of(problem, "prompt" if vllm else "content") from None


def detokenize(body: bytes, served: Served) -> dict[str, Any]:
    """The text of token ids, special tokens included, by vLLM's name and by llama.cpp's."""
    values = parse_body(body)
    served.check_model(check_fields(DetokenizeFields, values).model)
    tokens = values.get("tokens")
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        raise refuse("tokens", "expected a list of token ids")
    check_ids("tokens", tokens, served)
    try:
        with library_errors(served.tokenizer.path, "cannot decode"):
            text = served.tokenizer.inner.decode(tokens, skip_special_tokens=False)
    except PlanishError as problem:
        raise refusal_of(problem, "tokens") from None
    return {"prompt": text, "content": text}


def tokenizer_info(served: Served) -> dict[str, Any]:
    """Special tokens by the names of tokenizer_config.json, and the chat template, if any."""
    config, template = served.config, served.template
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": None,
        "unk_token": None,
        **special_texts(served),
        "chat_template": None if template is None else template.sources.get("default"),
        "vocab_size": config.vocab_size,
        "model_max_length": served.context,
    }


def special_texts(served: Served) -> dict[str, str | None]:
    """Role -> text of special tokens, as the tokenizer names them; those of the config where it
    names none. In transformers, too, a tokenizer without BOS has none though the config has."""
    config, added, roles = served.config, served.vocabulary.added, served.special_roles
    none: dict[str, str | None] = {"bos_token": None, "eos_token": None}
    if none.keys() & roles:
        return {**none, **roles}
    bos = config.bos_token_id
    ends = [added.get(token) for token in config.eos_token_ids]
    named = {"bos_token": None if bos is None else added.get(bos), "eos_token": [*ends, None][0]}
    return {**named, **roles}


def apply_template(body: bytes, served: Served) -> dict[str, Any]:
    """The text of a conversation by the model's template."""
    values = parse_body(body)
    refuse_unsupported(values, {"chat_template": ()})
    conversation = conversation_of(check_fields(ConversationFields, values), values, served)
    assert served.template is not None
    try:
        return {"prompt": render_chat(served.template, conversation)}
    except PlanishError as problem:
        raise refusal_of(problem, "messages") from None
