"""Write reference/architectures/goldens.json: python tests/golden/listed.py   (make.py does it too)

It tells an installed package which goldens each model_type has, and with which features.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from planish.reference.architectures import architecture_of, model_config  # noqa: E402
from planish.reference.architectures.features import GOLDENS, features  # noqa: E402


def listed() -> dict[str, dict[str, list[str]]]:
    """model_type -> name of a golden -> its features."""
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(HERE.glob("*/config.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        entry, config = architecture_of(values, file), model_config(values, file)
        found.setdefault(entry.model_type, {})[file.parent.name] = list(features(config, entry))
    return found


def write() -> None:
    GOLDENS.write_text(json.dumps(listed(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
