"""inspect --architectures: its table is derived from the goldens, and the README shows it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planish.reference.architectures import ENTRIES

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "reference" / "architectures" / "table.json"
GOLDEN = ROOT / "tests" / "golden"


def test_the_packaged_table_says_what_the_goldens_hold():
    spec = importlib.util.spec_from_file_location("table", GOLDEN / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(TABLE.read_text()) == module.rows(), "run python tests/golden/table.py"


def test_every_architecture_has_a_golden_and_an_example(planish):
    result = planish("inspect", "--architectures", "--json")
    rows = json.loads(result.out)["architectures"]
    assert (result.code, result.err) == (0, "")
    assert [row["model_type"] for row in rows] == list(ENTRIES)
    assert all(row["goldens"] and row["features"] and row["examples"] for row in rows)
    assert sum(row["goldens"] for row in rows) == len(list(GOLDEN.glob("*/golden.npz")))


@pytest.mark.parametrize(
    ("model_type", "always", "in_some"),
    [
        ("bloom", "ALiBi", None),
        ("falcon", None, "multi-query"),
        ("gemma2", "soft caps", None),
        ("glm", "partial interleaved rotary", "tied head"),
        ("llama", "rotary", "rope yarn"),
        ("mistral", "grouped queries", "sliding window"),
        ("mixtral", "experts", None),
        ("phi3", "fused tensors", "rope longrope"),
    ],
)
def test_features_of_all_goldens_and_of_some(planish, model_type, always, in_some):
    rows = json.loads(planish("inspect", "--architectures", "--json").out)["architectures"]
    row = next(row for row in rows if row["model_type"] == model_type)
    assert always is None or always in row["features"]
    assert in_some is None or in_some in row["in_some"]
    assert not set(row["features"]) & set(row["in_some"])


def test_the_documentation_shows_the_table(planish):
    result = planish("inspect", "--architectures")
    assert result.code == 0
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(result.out in file.read_text(encoding="utf-8") for file in files)


def test_it_needs_no_tests_directory(tmp_path):
    shutil.copytree(ROOT / "planish", tmp_path / "planish")
    shutil.copytree(ROOT / "reference", tmp_path / "planish" / "reference")  # as installed
    command = [sys.executable, "-m", "planish", "inspect", "--architectures"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2 + len(ENTRIES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ("--model", "--architectures", "required")),
        (("--architectures", "--model", "x"), ("--model", "--architectures", "not allowed")),
        (("--architecture",), ("--architecture", "did you mean --architectures?")),
        (("--architectures=llama",), ("--architectures", "llama")),
        (("--architectures", "llama"), ("llama",)),
        (("--architectures", "--kernels", "xla"), ("--kernels", "--model")),
        (("--architectures", "--compilation_cache", "x"), ("--compilation_cache", "--model")),
    ],
)
def test_wrong_flags_are_refused_in_one_line(planish, words, expected):
    assert planish("inspect", *words).refused(*expected)
