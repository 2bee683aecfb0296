"""The fields by which both kinds of bodies say how tokens are chosen, and when they end."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from planish.openai.bodies import Fields, FirstOnly, refuse
from planish.openai.served import Served
from planish.reference.text.requests import MOST_LISTED
from planish.reference.text.sampling import Sampling

MOST_CHOICES = 128  # of one request
MOST_STOPS, LONGEST_STOP = 64, 1024
MOST_ENDS = 8  # ids that end a text; more would need another program
LARGEST = 2**31 - 1
ANY_SEED = -1  # asks for a random one, as in vLLM and llama.cpp


Value = TypeVar("Value")


def listed(value: Any) -> Any:
    """A text as a list of one."""
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stops = Annotated[
    list[StopString], FirstOnly(), Field(max_length=MOST_STOPS), BeforeValidator(listed)
]
Token = Annotated[int, Field(ge=0, le=LARGEST)]
Tokens = Annotated[list[Token], FirstOnly(), Field(max_length=64)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(Fields):
    """include_usage: a last chunk with the numbers of tokens."""

    include_usage: bool | None = None


class SamplingFields(Fields):
    """Fields of both kinds of bodies. Those that are null or absent take the model's defaults."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=LARGEST)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=0, le=LARGEST)
    min_tokens: int | None = Field(None, ge=0, le=LARGEST)
    skip_special_tokens: bool | None = None
    stop: Stops | None = None
    stop_token_ids: Annotated[list[Token], FirstOnly(), Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = Field(None, max_length=1024)

    @property
    def skips_special(self) -> bool:
        """Whether special tokens are left out of texts."""
        return self.skip_special_tokens is not False

    def check_stream(self) -> None:
        """Refuse stream_options of an answer that is not streamed, as OpenAI does."""
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options", "only with stream: true")


TopLogprobs = Annotated[int, Field(ge=0, le=MOST_LISTED)]


def sampling_of(fields: SamplingFields, served: Served) -> Sampling:
    """How the tokens of a request are chosen; with a random seed if it names none."""
    default, vocabulary = served.defaults, served.config.vocab_size
    top_k = given(fields.top_k, default.top_k)
    return Sampling(
        temperature=given(fields.temperature, default.temperature),
        top_k=top_k if 0 < top_k < vocabulary else 0,
        top_p=given(fields.top_p, default.top_p),
        seed=seed_of(fields.seed),
        min_p=given(fields.min_p, default.min_p),
        repetition_penalty=given(fields.repetition_penalty, default.repetition_penalty),
        presence_penalty=given(fields.presence_penalty, default.presence_penalty),
        frequency_penalty=given(fields.frequency_penalty, default.frequency_penalty),
        logit_bias=bias_of(fields.logit_bias or {}, vocabulary),
    )


def given(value: Value | None, default: Value) -> Value:
    """A field's value, or the default."""
    return default if value is None else value


def seed_of(seed: int | None) -> int:
    """The 64 bits of a seed; random ones if none is given."""
    return secrets.randbits(64) if seed is None or seed == ANY_SEED else seed % 2**64


def bias_of(bias: dict[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    """{"5": -1.5} -> ((5, -1.5),); refused: an id that is no number or outside the vocabulary."""
    pairs = {}
    for key, value in bias.items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= token < vocabulary or token in pairs:
            raise refuse("logit_bias", f"{key!r:.40} is not a different id below {vocabulary}")
        pairs[token] = value
    return tuple(sorted(pairs.items()))


def ends_of(fields: SamplingFields, served: Served) -> tuple[int, ...]:
    """The ids that end a text: the model's, those of stop_token_ids, and special tokens that are
    stop strings as a whole, so that the session ends there."""
    own = () if fields.ignore_eos else served.config.eos_token_ids
    asked = check_ids("stop_token_ids", fields.stop_token_ids or (), served)
    ends = list(dict.fromkeys([*own, *asked]))
    if len(ends) > max(MOST_ENDS, len(own)):
        most = f"at most {MOST_ENDS} with the model's own {len(own)}"
        raise refuse("stop_token_ids", f"too many, expected {most}")
    stops = set(fields.stop or ())
    strings = [i for i in served.vocabulary.special if served.vocabulary.added[i] in stops]
    more = sorted(i for i in strings if i < served.config.vocab_size and i not in ends)
    return (*ends, *more[: max(0, MOST_ENDS - len(ends))])


def check_ids(param: str, ids: Sequence[int], served: Served) -> Sequence[int]:
    """Token ids of the vocabulary; others are refused."""
    vocabulary = served.config.vocab_size
    if any(not 0 <= token < vocabulary for token in ids):
        found = next(token for token in ids if not 0 <= token < vocabulary)
        raise refuse(param, f"expected ids of 0..{vocabulary - 1}, found {found}")
    return ids
