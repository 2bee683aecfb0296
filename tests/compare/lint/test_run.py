"""Every sample of other programs: exactly these findings, each true, and no other."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from planish.compare.lint.report import as_text, describe
from planish.compare.lint.rules import RULES, SEVERITIES
from planish.compare.lint.run import lint
from planish.reference.errors import PlanishError
from tests.compare.lint.conftest import FOREIGN, UP

SAMPLES = sorted(path for path in FOREIGN.iterdir() if path.is_dir())
DEAD, TRIVIAL = {"group-dead"}, {"order-trivial"}
EXPECTED = {  # the base of all samples has a group of zeros; groups of a whole row hide it
    "autoround-as-llm_compressor": DEAD | {"scale-negative"},
    "autoround-as-mlx": DEAD | {"scale-negative"},
    "autoround-asym-g32": DEAD,
    "autoround-asym-plain": DEAD | TRIVIAL,
    "autoround-sym-g32": DEAD | {"scale-negative"},
    "awq-gemm-g32": DEAD,
    "ct-fp8": set(),
    "ct-fp8-block64": set(),
    "ct-w4a16-asym-g32": DEAD | {"asymmetric-transformers"},
    "ct-w4a16-channel": {"group-llama"},
    "ct-w4a16-g32": DEAD,
    "ct-w4a8-g32": DEAD | {"group-llama"},
    "ct-w8a16-g64": {"code-minus-128"},
    "ct-w8a8": {"code-minus-128"},
    "ct-w8a8-static-asym": {"code-minus-128"},
    "gguf-q4_0": DEAD,
    "gguf-q4_k_m": DEAD,
    "gptq-v1-8bit-sym-g32": DEAD | TRIVIAL | {"code-minus-128", "scale-denormal"},
    "gptq-v1-asym-g32": DEAD | TRIVIAL | {"zero-v1-wraps"},
    "gptq-v1-sym-channel": TRIVIAL,
    "gptq-v1-sym-g32": DEAD | TRIVIAL,
    "gptq-v1-sym-g32-desc_act": set(),
    "gptq-v2-asym-g32": DEAD | TRIVIAL,
    "mlx-4bit-g64": set(),
    "mlx-8bit-g64": set(),
    "torchao-int8-w8a8": set(),
}
VALUES = (None, True, -1, 0, 2**70, 1.5, "x", [], {}, [1], {"a": 1}, 3, 8, 128, "gptq", "awq")
TYPES = {"F32": 4, "F16": 2, "I8": 1, "I32": 4, "F64": 8, "F8_E5M2": 1, "BOOL": 1, "U32": 4}


@pytest.mark.matrix(2)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_sample_has_these_findings_and_no_other(path):
    result = lint(path)
    assert {one.rule for one in result.findings} == EXPECTED[path.name]
    assert result.linears >= 7
    if not path.name.startswith("ct-fp8"):
        assert 0 < max(result.saturation.values()) < 0.1


def test_the_text_and_the_object_say_the_same():
    facts = describe(lint(FOREIGN / "gptq-v1-asym-g32"))
    assert (facts["errors"], facts["warnings"], facts["notes"]) == (1, 0, 2)
    assert [row["severity"] for row in facts["findings"]] == ["error", "note", "note"]
    (first, *_) = facts["findings"]
    assert len(first["where"]) == 7 and UP in first["where"]
    lines = as_text(facts).splitlines()
    assert lines[0].endswith(
        "gptq by gptqmodel:7.7.0, 7 quantized linears: 1 error, 0 warnings, 2 notes"
    )
    assert lines[2] == f"error: {first['what']}"
    assert lines[2].startswith("error: 7 of 3,840 zero points are stored as 15")
    assert lines[3].split() == f"in 7 linears, e.g. {first['where'][0]} (zero-v1-wraps)".split()
    assert "breaks: llama.cpp's converter" in lines[4] and "fix: " in lines[5]


def test_findings_with_other_details_have_rows_of_their_own(edited):
    def split(tensors, config):
        del tensors[f"{UP}.qzeros"]
        tensors["model.layers.0.mlp.gate_proj.scales"] = tensors[f"{UP}.scales"][0].copy()

    rows = describe(lint(edited("gptq-v1-sym-g32", split)))["findings"]
    whats = [row["what"] for row in rows if row["rule"] == "linear-unreadable"]
    assert len(whats) == 2 and "qzeros: is missing" in whats


def test_names_of_a_file_cannot_draw_on_the_terminal(edited):
    evil = "model.\x1b[2Jx"
    path = edited("ct-w8a8", lambda tensors, config: tensors.update({evil: np.ones(1, np.int8)}))
    text = as_text(describe(lint(path)))
    assert "\x1b" not in text and "\\x1b[2Jx" in text


def test_the_document_has_the_row_of_every_rule():
    text = (Path(__file__).parents[3] / "docs" / "lint.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (\w+) \|", text, re.MULTILINE))
    assert rows == {name: rule.severity for name, rule in RULES.items()}
    assert {rule.severity for rule in RULES.values()} == set(SEVERITIES)


def mutate(rng, value):
    """The same JSON value with something changed inside."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return value | {key: mutate(rng, value[key])}
    return rng.choice(VALUES)


def spoil_file(rng, raw: bytes) -> bytes:
    """A safetensors file with other types, shapes and numbers, which the library accepts."""
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), bytearray(raw[8 + size :])
    for name in rng.sample([name for name in header if name != "__metadata__"], 3):
        start, end = header[name]["data_offsets"]
        dtype = rng.choice(list(TYPES))
        if (end - start) % TYPES[dtype] == 0 and rng.random() < 0.5:
            count = (end - start) // TYPES[dtype]
            header[name] |= {"dtype": dtype, "shape": rng.choice([[count], [1, count], [count, 1]])}
        for _ in range(4):
            data[rng.randrange(start, end)] = rng.choice([0, 127, 128, 255])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


@pytest.mark.matrix(13)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_damaged_checkpoints_are_judged_or_refused(path, tmp_path):
    """Only typed errors, whatever the bytes say; what is judged can be printed."""
    rng, judged, refused = random.Random(path.name), 0, list[str]()
    for number in range(12):
        target = Path(shutil.copytree(path, tmp_path / str(number)))
        file = next(target.glob("model.*"))
        raw = file.read_bytes()
        if file.suffix == ".gguf":
            spoilt = bytearray(raw)
            for _ in range(3):
                spoilt[rng.randrange(rng.choice([200, 4000, len(raw)]))] = rng.randrange(256)
            file.write_bytes(bytes(spoilt))
        else:
            file.write_bytes(spoil_file(rng, raw))
            values = json.loads((target / "config.json").read_text())
            if number % 3 == 0:
                config = values["quantization_config"]
                values["quantization_config"] = mutate(rng, config)
            (target / "config.json").write_text(json.dumps(values))
        try:
            as_text(describe(lint(target)))
            judged += 1
        except PlanishError as problem:
            refused.append(str(problem))
    assert judged > 0
    assert not [line for line in refused if "\n" in line]
