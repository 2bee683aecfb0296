"""The progress of a long loop: a bar that a caller may pass in; by default there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[
    ..., Iterable[Any]
]  # (items, description) -> the items, each shown as it is taken


def no_progress(items: Iterable[Any], description: str = "") -> Iterable[Any]:  # noqa: ARG001
    """A progress bar that shows nothing; it takes the arguments of Progress."""
    return items
