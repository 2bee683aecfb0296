"""The same bytes with any number of threads, wide enough for BLAS and XLA to share the work."""

from __future__ import annotations

import pytest

from planish.terminal.threads import processors
from tests.models import make_llama

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
CASES = [
    ("W4A16", "reference", ()),
    ("W8A8", "reference", ()),
    ("W4A16", "reference", ("--method", "gptq")),
    ("W8A8", "fast", ("--kernels", "xla")),
    ("W4A16", "fast", ("--kernels", "xla", "--method", "gptq", "--group_size", 32)),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("wide"), num_hidden_layers=1, **WIDE)


@pytest.mark.matrix(6, 3)
@pytest.mark.skipif(processors() < 2, reason="needs two processors")
@pytest.mark.parametrize(("recipe", "engine", "more"), CASES)
def test_the_number_of_threads_does_not_change_a_byte(shell, wide, tmp_path, recipe, engine, more):
    files = []
    for threads in (1, 2):
        out = tmp_path / f"threads-{threads}"
        short = ("--samples", 4, "--sequence_length", 128, "--engine", engine)
        where = ("--model", wide, "--out", out, "--recipe", recipe, "--threads", threads)
        result = shell("quantize", *where, *short, *more)
        assert result.code == 0, result.err
        files.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert files[0] == files[1]
