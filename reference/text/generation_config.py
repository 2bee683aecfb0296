"""How a model wants to be sampled: generation_config.json.

    {"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}

A chat and a server take these values for what a user leaves open, and show them at the start, since
they surprise: a top_k of 1 makes every temperature greedy. Without do_sample the file says nothing
about sampling, as in transformers.

Source: https://huggingface.co/docs/transformers/main_classes/text_generation#transformers.GenerationConfig
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.reference.errors import ConfigError, SamplingError, notice
from planish.reference.json import read_json
from planish.reference.text.sampling import Sampling

FILE = "generation_config.json"
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
COUNT = "top_k"
SHOWN = ("temperature", "top_k", "top_p", "min_p")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
NO_EFFECT = {  # what else changes a text, and the values with which it does not
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0, 0.0),
    "guidance_scale": (1, 1.0),
}


def load_sampling_defaults(model: str | Path, vocab_size: int) -> Sampling | None:
    """The sampling that a model directory asks for; None if it does not ask for sampling.

    temperature is 1 if the file leaves it out, and every other value then keeps all tokens. top_k
    may be 0 or -1 for all, and larger than the vocabulary. Settings that planish does not have,
    such as typical_p, give a notice. Raises ConfigError for a value of a wrong type or range.
    """
    file = Path(model) / FILE
    if not file.exists():
        return None
    values = read_json(file)
    if not _asks_for_samples(values, file):
        return None
    named = {name: _number(values, name, file) for name in NUMBERS}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    sampling = Sampling(**{"temperature": 1.0, **given, COUNT: _top_k(values, file, vocab_size)})
    try:
        sampling.check(vocab_size)
    except SamplingError as wrong:
        where: dict[str, Any] = {"path": file, "name": wrong.name}
        raise ConfigError(
            wrong.problem, **where, expected=wrong.expected, found=wrong.found
        ) from None
    _notice_unused(values, file)
    return sampling


def describe_sampling(sampling: Sampling) -> str:
    """temperature 0.7, top_k 20, top_p 0.8: what differs from taking every token, in words."""
    plain = Sampling(temperature=-1)  # so that the temperature is always shown
    names = (*SHOWN, *PENALTIES) if sampling.temperature else ("temperature", *PENALTIES)
    parts = [
        f"{name} {getattr(sampling, name):g}"
        for name in names
        if getattr(sampling, name) != getattr(plain, name)
    ]
    parts += [f"logit_bias of {len(sampling.logit_bias)}"] if sampling.logit_bias else []
    return ", ".join(parts)


def _asks_for_samples(values: Mapping[str, Any], file: Path) -> bool:
    found = values.get("do_sample")
    if found is not None and not isinstance(found, bool):
        raise _bad_value(file, "do_sample", "true or false", found)
    return found is True


def _number(values: Mapping[str, Any], name: str, file: Path) -> float | None:
    """A number of the file; null counts as absent."""
    found = values.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _bad_value(file, name, "a number", found)
    try:
        return float(found)
    except OverflowError:
        raise _bad_value(file, name, "a number", found) from None


def _top_k(values: Mapping[str, Any], file: Path, vocab_size: int) -> int:
    """How many tokens are kept, 0 for all."""
    found = values.get(COUNT)
    if found is None:
        return 0
    whole = int(found) if isinstance(found, float) and found.is_integer() else found
    if isinstance(whole, bool) or not isinstance(whole, int) or whole < -1:
        raise _bad_value(file, COUNT, "a count of tokens, or 0 or -1 for all", found)
    return min(max(whole, 0), vocab_size)


def _bad_value(file: Path, name: str, expected: str, found: object) -> ConfigError:
    return ConfigError("bad value", path=file, name=name, expected=expected, found=repr(found))


def _notice_unused(values: Mapping[str, Any], file: Path) -> None:
    """Say which settings of the file planish does not have."""
    found = [
        name
        for name, idle in NO_EFFECT.items()
        if values.get(name) is not None and values[name] not in idle
    ]
    if found:
        notice(f"{file}: {', '.join(found)}: not used; planish does not have this")
