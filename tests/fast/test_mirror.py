"""A function of fast/ with the reference's name takes the reference's arguments first, in order.

What the reference leaves to a default may be missing in fast/ (a tap, say), and what is one token
there may be a batch's tokens here. A function that does something else has another name. The
reference's files/ and architectures/ compute nothing, and fast/ has nothing like them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Functions = dict[str, list[tuple[Path, ast.FunctionDef]]]


def functions_of(room: str, without: tuple[str, ...] = ()) -> Functions:
    """Every public function at the top of a module, by name."""
    found: Functions = {}
    files = [path.relative_to(ROOT) for path in sorted((ROOT / room).rglob("*.py"))]
    for path in (path for path in files if path.parts[1] not in without):
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append((path, node))
    return found


def required(function: ast.FunctionDef) -> list[str]:
    """The names of parameters without a default, in order."""
    names = [parameter.arg for parameter in function.args.args]
    return names[: len(names) - len(function.args.defaults)]


def begins_with(function: ast.FunctionDef, names: list[str]) -> bool:
    given = [parameter.arg for parameter in function.args.args][: len(names)]
    return len(given) == len(names) and all(
        own in (name, name + "s") for own, name in zip(given, names, strict=True)
    )


FAST = functions_of("fast")
REFERENCE = functions_of("reference", ("files", "architectures"))
SHARED = sorted(FAST.keys() & REFERENCE.keys())


def test_the_number_path_is_shared():
    assert {"embed", "attend", "attention", "mlp", "mixture", "route", "unembed", "extend"} <= {
        *SHARED
    }
    assert {"prefill", "decode_step", "linear", "quantize_activations", "sample"} <= {*SHARED}


@pytest.mark.parametrize("name", SHARED)
def test_the_references_arguments_come_first(name):
    wanted = [required(node) for _, node in REFERENCE[name]]
    for path, node in FAST[name]:
        own = [parameter.arg for parameter in node.args.args]
        assert any(begins_with(node, names) for names in wanted), (str(path), own, wanted)


def test_another_order_would_be_found():
    mine = ast.parse("def attend(x, block, config): ...").body[0]
    assert isinstance(mine, ast.FunctionDef)
    assert not begins_with(mine, ["config", "block", "x"])
