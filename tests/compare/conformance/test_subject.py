"""Other engines can be judged, too: a fake one in NumPy, and transformers where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from planish.command import parse, run
from planish.compare.conformance import report
from planish.compare.subject import Subject
from planish.reference.files.load import Checkpoint, load_weights, open_checkpoint
from planish.reference.model import transformer
from planish.reference.model.weights import Block
from tests.compare.conftest import GOLDENS
from tests.compare.mutations import change_part

TOKENS = list(range(3, 43))
oracle = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("transformers") is None,
    reason="the extra `oracle` is not installed",
)


class Textbook:
    """An engine that answers two questions, logits and blocks; it computes as the reference."""

    def __init__(self, checkpoint: Checkpoint):
        self.config, self.weights = checkpoint.config, load_weights(checkpoint)

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        return transformer.forward(self.config, self.weights, tokens)

    def blocks(self, tokens: Sequence[int], hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        positions = np.arange(len(tokens))
        first = transformer.embed(self.config, self.weights, np.asarray(tokens), positions)
        pairs = zip(self.weights.blocks, hidden, strict=True)
        return [first, *(self.block(block, x) for block, x in pairs)]

    def block(self, block: Block, x: np.ndarray) -> np.ndarray:
        past = transformer.empty_cache(self.config)
        given = np.arange(len(x)), (past.keys[0], past.values[0])
        return transformer.block_forward(self.config, block, x, *given)[0]


def textbook(checkpoint: Checkpoint) -> Subject:
    engine = Textbook(checkpoint)
    return Subject(name="textbook", form="NumPy", model=engine, blocks=engine)


@pytest.mark.parametrize("name", ["llama-3-rope", "mixtral-window-untied", "opt-pre-norm"])
def test_an_engine_that_answers_two_questions_is_judged_on_two_levels(name):
    checkpoint = open_checkpoint(GOLDENS / name)
    result = report.run(checkpoint, TOKENS, subject=textbook(checkpoint))
    assert result.agree, result.table()
    layers = range(checkpoint.config.num_layers)
    assert {(c.level, c.layer, c.part) for c in result.checks} >= {
        *((2, layer, "block") for layer in layers),
        (2, None, "embed"),
        (3, None, "logits"),
    }
    assert result.table().startswith("textbook on ")
    assert (result.as_dict()["subject"], result.kernels) == ("textbook", ())


def in_layer_1(blocks, tokens, hidden):
    found = blocks(tokens, hidden)
    found[2] = found[2] * np.float32(1.0001)
    return found


def test_the_layer_that_is_wrong_is_named(tmp_path):
    checkpoint = open_checkpoint(GOLDENS / "llama-3-rope")
    subject = change_part("blocks", blocks=in_layer_1)(textbook(checkpoint))
    first = report.run(checkpoint, TOKENS, subject=subject).first_mismatch
    assert first is not None
    assert (first.level, first.layer, first.part) == (2, 1, "block")


def test_a_mistake_that_only_the_whole_shows_is_found():
    checkpoint = open_checkpoint(GOLDENS / "llama-3-rope")
    wrong = change_part("model", forward=lambda forward, tokens: forward(tokens[::-1]))
    subject = wrong(replace(textbook(checkpoint), blocks=None))
    first = report.run(checkpoint, TOKENS, subject=subject).first_mismatch
    assert first is not None and (first.level, first.part) == (3, "logits")


@pytest.mark.skipif(find_spec("torch") is not None, reason="the extra `oracle` is installed")
def test_without_the_extra_the_command_says_how_to_get_it(capsys):
    words = ["planish", "compare", "--model", str(GOLDENS / "opt-pre-norm"), "--subject"]
    assert run(parse([*words, "transformers"])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not installed; expected the extra `oracle`: pip install" in error


def test_a_quantized_model_is_refused_for_transformers(subjects, capsys):
    path = str(subjects("llama", "W8A8").path)
    assert run(parse(["planish", "compare", "--model", path, "--subject", "transformers"])) == 2
    assert "is quantized" in capsys.readouterr().err


@oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama-3-rope", "mixtral-window-untied", "bloom-tied"])
def test_transformers_agrees_layer_by_layer(name):
    from planish.compare.conformance.hugging_face import hugging_face

    checkpoint = open_checkpoint(GOLDENS / name)
    result = report.run(checkpoint, TOKENS, subject=hugging_face(checkpoint))
    assert result.agree, result.table()
    blocks = [check for check in result.checks if check.part == "block"]
    assert len(blocks) == checkpoint.config.num_layers


@oracle
@pytest.mark.filterwarnings("ignore")
def test_another_model_of_transformers_differs(tmp_path: Path):
    from planish.compare.conformance.hugging_face import hugging_face

    checkpoint = open_checkpoint(GOLDENS / "llama-3-rope")
    other = open_checkpoint(GOLDENS / "llama-linear-rope")
    first = report.run(checkpoint, TOKENS, subject=hugging_face(other)).first_mismatch
    assert first is not None and first.level == 2
