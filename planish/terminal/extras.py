"""The packages of an extra, which a verb may need."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from planish.reference.errors import PlanishError


def require_packages(name: str, packages: Sequence[str], extra: str) -> None:
    """Raise PlanishError, naming the verb or flag and the extra, if one is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            problem = f"needs the package {package}"
            expected = f"pip install planish[{extra}]"
            raise PlanishError(problem, name=name, expected=expected) from None
