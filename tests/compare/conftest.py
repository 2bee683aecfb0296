"""Subjects for the judge: one-layer models of two families, quantized by every recipe.

One layer, 64 positions and 40 tokens, so that a comparison takes no longer than its programs take
to compile; K = 80 and 48 are not multiples of the group of 32. Other architectures are goldens,
cut in memory to two layers, 48 positions and windows of 12 tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.compare.conformance import report
from planish.compare.conformance.fast_engine import fast_engine
from planish.compare.conformance.verdict import Report
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from tests.compare.mutations import Mutation
from tests.models import make_llama

FAMILIES = ("llama", "opt")
POSITIONS = 64
GOLDENS = Path(__file__).parent.parent / "golden"
GOLDEN = GOLDENS / "opt-pre-norm"
SHORT = 48  # positions of other goldens: the last slot is near
WINDOW = 12  # tokens, instead of more than a short prompt has

RECIPES: dict[str, dict[str, Any]] = {
    "float": {},
    "W8A8": {},
    "O1": {},
    "O2": {},
    "O3": {},
    "O3-static": {"attention": "int8"},
    "naive": {},
    "naive-W8A8": {"scheme": "W8A8"},
    "W8A16": {"head": "int8"},
    "W4A16": {"group_size": 32, "head": "int4"},
    "W4A8": {"group_size": 32},
    "W4A8-per_token": {"group_size": 32, "activation": "per_token"},
    "W4A8-absmax": {"group_size": 32, "rule": "absmax"},
    "W4A8-absmax7": {"group_size": 32, "rule": "absmax7"},
    "W4A8-minmax": {"group_size": 32, "rule": "minmax"},
    "W4A16-mixed": {
        "group_size": 32,
        "scheme": "q_proj=W8A8,v_proj=O3,o_proj=float,gate_proj=O2,up_proj=W4A8-g64-minmax,"
        "down_proj=W8A16,lm_head=W4A8",
    },
}

Models = Callable[[str, str], Checkpoint]


def cut_opt(target: Path) -> Path:
    """The golden OPT with one layer and fewer positions: biases everywhere."""
    target.mkdir()
    values = json.loads((GOLDEN / "config.json").read_text())
    values |= {"num_hidden_layers": 1, "max_position_embeddings": POSITIONS}
    (target / "config.json").write_text(json.dumps(values))
    tensors = load_file(GOLDEN / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    for name in kept:
        if "embed_positions" in name:
            kept[name] = np.ascontiguousarray(kept[name][: POSITIONS + 2])
    save_file(kept, target / "model.safetensors")
    return target


def quantize_into(source: Path, target: Path, name: str) -> Path:
    """The model by one of RECIPES, calibrated on random tokens."""
    checkpoint, rng = open_checkpoint(source), np.random.default_rng(1)
    samples = list(rng.integers(0, checkpoint.config.vocab_size, (4, POSITIONS)))
    chosen = recipe(name.split("-")[0], **RECIPES[name])
    with CheckpointWriter(target, source) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples)
    return target


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """subjects(family, recipe) -> an opened checkpoint, made once."""
    root = tmp_path_factory.mktemp("subjects")
    sizes = {"num_hidden_layers": 1, "intermediate_size": 80, "max_position_embeddings": POSITIONS}
    sources = {"llama": make_llama(root, "llama", **sizes), "opt": cut_opt(root / "opt")}

    def subject(family: str, name: str) -> Checkpoint:
        target = root / f"{family}-{name}"
        if name == "float":
            return open_checkpoint(sources[family])
        if not target.exists():
            quantize_into(sources[family], target, name)
        return open_checkpoint(target)

    return subject


def cut(found: Checkpoint) -> Checkpoint:
    """Two layers, and a prompt that leaves its windows and nearly fills the cache."""
    config, layers = found.config, found.config.layers[:2]
    layers = tuple(replace(kind, window=kind.window and WINDOW) for kind in layers)
    positions = SHORT if config.position_offset is None else config.max_positions
    return replace(found, config=replace(config, layers=layers, max_positions=positions))


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """golden(directory, recipe) -> the golden model of that name by that recipe, cut."""
    root = tmp_path_factory.mktemp("goldens")

    def subject(directory: str, name: str) -> Checkpoint:
        if name == "float":
            return cut(open_checkpoint(GOLDENS / directory))
        target = root / f"{directory}-{name}"
        if not target.exists():
            quantize_into(GOLDENS / directory, target, name)
        return cut(open_checkpoint(target))

    return subject


@pytest.fixture
def judge(
    subjects: Models, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Report]:
    """judge(family, recipe, levels) -> the report on a random prompt.

    family: llama, opt, or the directory of another golden. native: by the kernels; without
    what needs no model, which test_kernels.py runs once. mutation: a mistake of the engine.
    """

    def run(
        family: str,
        name: str,
        levels: Sequence[int] = (1, 2, 3),
        native: bool = False,
        kv_cache: str = "float32",
        attention: str = "float",
        length: int = 40,
        mutation: Mutation = lambda subject: subject,
    ) -> Report:
        if native:
            request.getfixturevalue("kernels")
            monkeypatch.setattr(report.Walk, "check_without_model", lambda walk: [])
        models = subjects if family in FAMILIES else request.getfixturevalue("golden")
        found = models(family, name)
        positions = max(length, found.config.max_positions)
        config = replace(found.config, kv_cache=kv_cache, attention=attention)
        config = replace(config, max_positions=positions)
        tokens, found = (
            report.draw_tokens(config.vocab_size, length),
            replace(found, config=config),
        )
        subject = mutation(fast_engine(found, native))
        return report.run(found, tokens, levels=levels, subject=subject)

    return run


@pytest.fixture(params=[False, True], ids=["xla", "native"])
def native(request: pytest.FixtureRequest) -> bool:
    """Both forms of the engine."""
    return request.param
