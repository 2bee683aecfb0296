"""rope_ratio: ChatGLM2-6B-32K divides positions by it, ChatGLM3 and GLM-4 scale the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planish.reference.architectures import model_config
from planish.reference.errors import ConfigError
from planish.reference.model.rope import Interpolation

GOLDEN = Path(__file__).parents[2] / "golden" / "chatglm-2" / "config.json"


def rope_of(**changes):
    """The rope of a config with changes; 65024 is the vocabulary of ChatGLM2 and ChatGLM3."""
    values = json.loads(GOLDEN.read_text()) | {"padded_vocab_size": 65024} | changes
    return model_config(values, Path("config.json")).ropes[0]


def test_chatglm2_divides_positions():
    rope = rope_of(rope_ratio=16, _name_or_path="THUDM/chatglm2-6b-32k")
    assert (rope.theta, rope.scaling) == (1e4, Interpolation(factor=16.0))


def test_chatglm3_scales_the_base():
    rope = rope_of(rope_ratio=50, _name_or_path="/models/ChatGLM3-6B-32k")
    assert (rope.theta, rope.scaling) == (5e5, None)


@pytest.mark.parametrize("name", [None, "", "my-model", 3])
def test_an_ambiguous_ratio_is_refused_with_a_remedy(name):
    with pytest.raises(ConfigError, match="config.json: _name_or_path: bad value; .*chatglm2.*3"):
        rope_of(rope_ratio=16, _name_or_path=name)


@pytest.mark.parametrize(
    "changes", [{"rope_ratio": 1}, {"rope_ratio": None}, {"rope_ratio": 5, "padded_vocab_size": 9}]
)
def test_without_a_ratio_or_with_another_vocabulary_no_name_is_needed(changes):
    assert rope_of(**changes).scaling is None
