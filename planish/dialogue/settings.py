"""What /set shows and changes: how answers are sampled, and how long they may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from planish.reference.errors import SamplingError, suggest
from planish.reference.text.sampling import Sampling
from planish.terminal.sampling import CHOICE, PENALTIES

RANDOM = "random"
SWITCH = {"on": True, "off": False}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """sampling: its seed counts only if seed is not None. seed: None draws one for each answer."""

    sampling: Sampling
    seed: int | None = None
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    verbose: bool = False

    def values(self) -> dict[str, Any]:
        """Name -> value of all that /set knows."""
        found = {name: getattr(self.sampling, name) for name in (*CHOICE, *PENALTIES)}
        found["seed"] = RANDOM if self.seed is None else self.seed
        found["max_new_tokens"] = self.max_new_tokens
        return found | {"verbose": "on" if self.verbose else "off"}

    def changed(self, name: str, text: str, vocab_size: int) -> Settings:
        """With another value, written as a text. SamplingError for one that cannot be."""
        if name in (*CHOICE, *PENALTIES):
            flag = CHOICE.get(name) or PENALTIES[name]
            value: dict[str, Any] = {name: _parse(name, text, flag.kind)}
            made = replace(self, sampling=replace(self.sampling, **value))
        elif name == "seed":
            seed = None if text == RANDOM else int(_parse(name, text, int))
            made = replace(self, seed=seed)
        elif name == "max_new_tokens":
            made = replace(self, max_new_tokens=int(_parse(name, text, int)))
        elif name == "verbose":
            made = replace(self, verbose=_switch(name, text))
        else:
            known = self.values()
            expected = f"one of {', '.join(known)}{suggest(name, known)}"
            raise SamplingError("is unknown", name=name, expected=expected)
        made.check(vocab_size)
        return made

    def check(self, vocab_size: int) -> None:
        """Raise SamplingError for a value outside its range."""
        replace(self.sampling, seed=self.seed or 0).check(vocab_size)
        if self.max_new_tokens < 1:
            found = self.max_new_tokens
            raise SamplingError(
                "bad value", name="max_new_tokens", expected="1 or more", found=found
            )


def _parse(name: str, text: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(text)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        expected += f", or {RANDOM}" if name == "seed" else ""
        raise SamplingError("bad value", name=name, expected=expected, found=repr(text)) from None


def _switch(name: str, text: str) -> bool:
    if text not in SWITCH:
        raise SamplingError("bad value", name=name, expected="on or off", found=repr(text))
    return SWITCH[text]
