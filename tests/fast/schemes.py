"""Schemes that do not exist, for what refuses them."""

import copy
from typing import Any

from planish.reference.scheme import Scheme


def forced(scheme: Scheme, **fields: Any) -> Scheme:
    """A scheme with fields that its own checks would refuse."""
    made = copy.copy(scheme)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made
