"""Check the given flags: report those without effect, refuse those that contradict.

    refuse_given(args, ("--recipes",), "is for --shape, not for --model")
    notice_idle(args, (args.temperature == 0, "at temperature 0", ("--top_k", "--seed")))
    check_range("timeout", args.timeout, 1, 86_400)

The rule, as docs/command.md words it: a flag that says what is made must fit the recipe or subject,
otherwise it is an error (reference/quantize/recipe.py, refuse_given); a flag that says how it is
made and changes nothing here causes one line on stderr and no error, for scripts pass such flags.

`args.given` maps each flag on the command line to its values as typed, so that a flag counts as
given even with its default value.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from planish.reference.errors import PlanishError, notice

Rule = tuple[bool, str, Sequence[str]]  # if it holds, these flags have no effect; why


def notice_idle(args: argparse.Namespace, *rules: Rule) -> None:
    """Report in one line which given flags have no effect; call it once, after all checks.

    It also reports a flag for one value that was given several times: the last value counts.
    """
    parts = [line for holds, why, flags in rules if holds and (line := _idle(args, flags, why))]
    parts += [f"{flag}: given more than once, the last counts" for flag in _repeated(args)]
    if parts:
        notice("; ".join(parts))


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Raise PlanishError if a flag's value is not least..most."""
    if not least <= value <= most:
        expected = f"{least}..{most}"
        raise PlanishError("bad value", name=name, expected=expected, found=value)


def refuse_given(args: argparse.Namespace, flags: Sequence[str], problem: str) -> None:
    """Raise PlanishError for the first of these flags that was given."""
    for flag in args.given:
        if flag in flags:
            raise PlanishError(problem, name=flag)


def engine_rule(args: argparse.Namespace) -> Rule:
    """The fast engine's flags have no effect on the reference; native kernels contradict it."""
    reference = args.engine == "reference"
    if reference and args.kernels == "native":
        problem = "is for --engine fast, not for --engine reference"
        raise PlanishError(problem, name="--kernels native")
    return reference, "with --engine reference", ("--kernels", "--compilation_cache")


def _idle(args: argparse.Namespace, flags: Sequence[str], why: str) -> str:
    idle = [flag for flag in args.given if flag in flags]
    return f"{', '.join(idle)}: no effect {why}" if idle else ""


def _repeated(args: argparse.Namespace) -> list[str]:
    """Flags given with several different values, of which argparse keeps the last."""
    return [
        flag
        for flag, values in args.given.items()
        if len(set(values)) > 1 and not isinstance(getattr(args, flag[2:], None), list)
    ]
