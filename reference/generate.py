"""The loop: prompt, then one token after another until something says stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from reference.block import Weights
from reference.config import ModelConfig
from reference.errors import PromptError, SamplingError
from reference.model import decode_step, prefill
from reference.sampling import Sampling, sample
from reference.tokenizer import TextStream, Tokenizer

MOST_BYTES = 2**62  # more than any machine has, and still a size that NumPy takes


@dataclass(frozen=True)
class Stop:
    """When to end: at the model's end-of-text ids, at any of some strings, or after a number."""

    max_new_tokens: int
    strings: tuple[str, ...] = ()
    ignore_eos: bool = False


def check_fits(
    config: ModelConfig, prompts: Sequence[Sequence[int]], stop: Stop, slots: int
) -> None:
    """Refuse before anything is computed: token ids out of range, and what the cache cannot hold.

    The last new token is never fed back, so a prompt of P and N new tokens take P + N - 1 slots.
    """
    if stop.max_new_tokens < 0:
        expected = "0 or more"
        raise SamplingError(
            "bad value", name="max_new_tokens", expected=expected, found=stop.max_new_tokens
        )
    if any(not string for string in stop.strings):
        raise SamplingError("is empty", name="stop")
    for prompt in prompts:
        check_tokens(config, prompt)
        needed = len(prompt) + max(stop.max_new_tokens - 1, 0)
        if needed > slots:
            raise PromptError(
                f"{len(prompt)} prompt tokens and {stop.max_new_tokens} new ones do not fit",
                name="prompt",
                expected=f"at most {slots} positions",
                found=needed,
            )


def reserve(size: int) -> None:
    """Raise MemoryError now, not after minutes of work, where a cache of `size` bytes has no room.

    Nothing is written, so this takes no time; the system refuses what it can never give.
    """
    np.empty(min(size, MOST_BYTES), np.uint8)


def check_tokens(config: ModelConfig, tokens: Sequence[int]) -> None:
    """Raise PromptError for no tokens, or one outside the vocabulary."""
    if len(tokens) == 0:
        raise PromptError("is empty", name="prompt", expected="at least one token")
    for token in tokens:
        if not 0 <= token < config.vocab_size:
            raise PromptError(
                "bad token id", name="tokens", expected=f"0..{config.vocab_size - 1}", found=token
            )


def generate(
    config: ModelConfig,
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    stop: Stop,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Iterator[tuple[int, int]]:
    """Yield (row, token) as tokens come, prompt after prompt; an eos id ends a row unyielded."""
    sampling.check(config.vocab_size)
    check_fits(config, prompts, stop, config.max_positions)
    eos = () if stop.ignore_eos else config.eos_token_ids
    for row, prompt in enumerate(prompts):
        if stop.max_new_tokens == 0:
            continue
        logits, cache = prefill(config, weights, prompt)
        last = logits[-1]
        for step in range(stop.max_new_tokens):
            token = sample(last, sampling, row, step)
            if token in eos:
                break
            yield row, token
            if step + 1 < stop.max_new_tokens:
                last, cache = decode_step(config, weights, token, cache)


class StopStrings:
    """Streams text up to the first stop string, holding back what might be the start of one."""

    def __init__(self, stream: TextStream, strings: Sequence[str]):
        self.stream, self.strings = stream, tuple(strings)
        self.held, self.stopped = "", False

    def push(self, token: int) -> str:
        """Text that is safe to show; after a stop string was seen `stopped` is true."""
        return "" if self.stopped else self._release(self.stream.push(token))

    def finish(self) -> str:
        """What is left at the end."""
        if self.stopped:
            return ""
        text = self._release(self.stream.finish())
        text, self.held = text + self.held, ""
        return text

    def _release(self, piece: str) -> str:
        text = self.held + piece
        found = [text.index(string) for string in self.strings if string in text]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, string) for string in self.strings), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of text begin the string."""
    sizes = range(min(len(text), len(string) - 1), 0, -1)
    return next((n for n in sizes if text.endswith(string[:n])), 0)


def text_stream(tokenizer: Tokenizer, prompt: Sequence[int], stop: Stop) -> StopStrings:
    """The text of a row as its tokens come."""
    return StopStrings(tokenizer.stream(prompt), stop.strings)
