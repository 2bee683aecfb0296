"""The progress bar: on stderr, after two seconds, and only on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any], description: str = "") -> Iterable[Any]:
    """Iterate with a bar that says what, how many and how long; silent when not a terminal."""
    return tqdm(items, desc=description, delay=2, disable=None, leave=False)
