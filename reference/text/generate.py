"""The generation loop: the prompt, then one token after another until a stop condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from planish.reference.errors import PromptError, SamplingError
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import decode_step, prefill
from planish.reference.model.weights import Weights
from planish.reference.text.sampling import Sampling, next_token
from planish.reference.text.tokenizer import TextStream, Tokenizer

NEEDS_NONE = ", of which the last new token needs none"
MOST_BYTES = 2**62  # more than any machine has, and still a size that NumPy takes


@dataclass(frozen=True)
class Stop:
    """When to end: at an eos id of the model, at any of `strings`, or after max_new_tokens.

    A string may be or contain the text of a special token, such as "<|im_end|>" or
    "<|im_end|>\\n": the token then counts as its text, though it is not shown, with ignore_eos too.
    """

    max_new_tokens: int
    strings: tuple[str, ...] = ()
    ignore_eos: bool = False


def check_fits(
    config: ModelConfig, prompts: Sequence[Sequence[int]], stop: Stop, slots: int
) -> None:
    """Before anything is computed, refuse token ids out of range and prompts that do not fit.

    The last new token is never fed back, so P prompt tokens and N new tokens take P + N - 1 slots.
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
                expected=f"at most {slots} positions{NEEDS_NONE * (stop.max_new_tokens > 0)}",
                found=needed,
            )


def check_continuations(
    config: ModelConfig, context: Sequence[int], continuations: Sequence[Sequence[int]]
) -> None:
    """The same for scoring each continuation of a context; neither may be empty. The last token is
    only predicted, and needs no position."""
    for tokens in (context, *continuations):
        check_tokens(config, tokens)
    whole = [[*context, *continuation[:-1]] for continuation in continuations]
    check_fits(config, whole, Stop(0), config.max_positions)


def reserve(size: int) -> None:
    """Raise MemoryError now, not after minutes of work, if a cache of `size` bytes cannot fit.

    Nothing is written, so this takes no time; the system refuses more than it can ever provide.
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
    """Yield (row, token), prompt after prompt; an eos id ends a row and is not yielded."""
    sampling.check(config.vocab_size)
    check_fits(config, prompts, stop, config.max_positions)
    eos = () if stop.ignore_eos else config.eos_token_ids
    for row, prompt in enumerate(prompts):
        if stop.max_new_tokens == 0:
            continue
        logits, cache = prefill(config, weights, prompt)
        last, text = logits[-1], list[int]()
        for step in range(stop.max_new_tokens):
            token = next_token(last, sampling, prompt, text, row)
            if token in eos:
                break
            text.append(token)
            yield row, token
            if step + 1 < stop.max_new_tokens:
                last, cache = decode_step(config, weights, token, cache)


class StopStrings:
    """Stream text up to the first stop string, holding back a possible beginning of one.

    `added`: id -> text of special and other added tokens. Special tokens are left out of the text.
    One whose text occurs in a stop string takes part in the search, but is not shown. The others
    are skipped, so a stop string is found across them.
    """

    def __init__(
        self, stream: TextStream, strings: Sequence[str], added: Mapping[int, str] | None = None
    ):
        self.stream, self.strings = stream, tuple(strings)
        named = (added or {}).items()
        self.named = {i: text for i, text in named if any(text in each for each in self.strings)}
        self.held, self.stopped = "", False
        self.shown: list[str] = []  # the output of each character held back: itself or nothing

    def push(self, token: int) -> str:
        """The text that is safe to show; `stopped` is true once a stop string was found."""
        if self.stopped:
            return ""
        if token not in self.named:
            piece = self.stream.push(token)
            return self._release(piece, piece)
        return self._push_named(token)

    def _push_named(self, token: int) -> str:
        """Push a token that counts as its text even if the decoder leaves it out."""
        text, before = self.named[token], self.stream.settle()
        shown = self._release(before, before)
        if self.stopped:
            return shown
        piece = self.stream.push(token)
        if text in piece:
            return shown + self._release(piece, piece)
        return shown + self._release(text, [piece, *repeat("", len(text) - 1)])

    def finish(self) -> str:
        """The text still held back, at the end of a row."""
        if self.stopped:
            return ""
        piece = self.stream.finish()
        text = self._release(piece, piece) + "".join(self.shown)
        self.held, self.shown = "", []
        return text

    def _release(self, piece: str, shown: Sequence[str]) -> str:
        """Search more text; `shown` is the output of each of its characters."""
        text, self.shown = self.held + piece, [*self.shown, *shown]
        found = [text.index(string) for string in self.strings if string in text]
        if found:
            released = self.shown[: min(found)]
            self.stopped, self.held, self.shown = True, "", []
            return "".join(released)
        end = len(text) - max((_overlap(text, string) for string in self.strings), default=0)
        released, self.held, self.shown = self.shown[:end], text[end:], self.shown[end:]
        return "".join(released)


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that is a beginning of `string`, not all of it."""
    sizes = range(min(len(text), len(string) - 1), 0, -1)
    return next((n for n in sizes if text.endswith(string[:n])), 0)


def text_stream(tokenizer: Tokenizer, prompt: Sequence[int], stop: Stop) -> StopStrings:
    """A stream of the text of one row, up to a stop string."""
    added = tokenizer.added_tokens() if stop.strings else {}
    return StopStrings(tokenizer.stream(prompt), stop.strings, added)
