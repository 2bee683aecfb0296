"""How far a long loop is: a bar that a caller may give, and none by default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[..., Iterable[Any]]  # (items, description) -> the items, as they are shown


def no_progress(items: Iterable[Any], description: str = "") -> Iterable[Any]:
    """A progress bar that shows nothing."""
    return items
