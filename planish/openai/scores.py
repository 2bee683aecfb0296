"""Log-probabilities in the two forms of the protocol.

chat         {"content": [{"token", "logprob", "bytes", "top_logprobs": [{...}]}]}
completions  {"tokens", "token_logprobs", "top_logprobs": [{text: logprob}], "text_offset"}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from planish.openai.choice import Entry
from planish.openai.vocabulary import Vocabulary
from planish.reference.text.requests import TokenScore

LEAST = -9999.0  # for log 0, which JSON has no number for


def finite_log(value: float) -> float:
    """A log-probability, or LEAST."""
    return value if math.isfinite(value) else LEAST


def chat_logprobs(vocabulary: Vocabulary, entries: Sequence[Entry]) -> dict[str, Any]:
    """Tokens whose bytes together are the text."""
    return {"content": [chat_entry(vocabulary, entry) for entry in entries]}


def chat_entry(vocabulary: Vocabulary, entry: Entry) -> dict[str, Any]:
    assert entry.score is not None
    top = [
        {
            "token": vocabulary.text_of(token),
            "logprob": finite_log(value),
            "bytes": list(vocabulary.bytes_of(token)),
        }
        for token, value in entry.score.top
    ]
    return {
        "token": vocabulary.text_of(entry.token),
        "logprob": finite_log(entry.score.logprob),
        "bytes": list(entry.raw),
        "top_logprobs": top,
    }


def completion_logprobs(vocabulary: Vocabulary, entries: Sequence[Entry]) -> dict[str, Any]:
    """Tokens and where each begins in the text."""
    return {
        "tokens": [vocabulary.text_of(entry.token) for entry in entries],
        "token_logprobs": [
            None if entry.score is None else finite_log(entry.score.logprob) for entry in entries
        ],
        "top_logprobs": [
            None if entry.score is None else top_texts(vocabulary, entry.score) for entry in entries
        ],
        "text_offset": [entry.start for entry in entries],
    }


def top_texts(vocabulary: Vocabulary, score: TokenScore) -> dict[str, float]:
    """The likeliest tokens and this one: text -> log-probability, the larger one of equal texts."""
    found: dict[str, float] = {}
    for token, value in (*score.top, (score.token, score.logprob)):
        text = vocabulary.text_of(token)
        found[text] = max(found.get(text, LEAST), finite_log(value))
    return found
