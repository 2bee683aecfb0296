"""q, k and v, or gate and up, with different schemes."""

import json

import numpy as np
import pytest

from planish.compare.lint.fused import check_fused
from planish.compare.lint.opened import Opened
from tests.compare.lint.conftest import LAYER, UP, found


def opened(form="gptq", floats=()):
    return Opened(path=None, format=form, entries=dict.fromkeys(f"{f}.weight" for f in floats))


def names(schemes, **fields):
    return [(one.where, one.detail) for one in check_fused(opened(**fields), schemes)]


QKV = {f"m.{part}_proj": "4 bits g=32" for part in "qkv"}


def test_parts_with_the_same_scheme_are_sound():
    assert names({**QKV, "m.o_proj": "8 bits row", "m.gate_proj": "a", "m.up_proj": "a"}) == []


def test_parts_with_other_schemes():
    ((where, detail),) = names(QKV | {"m.v_proj": "8 bits row"})
    assert where == "m"
    assert detail == "q_proj 4 bits g=32, k_proj 4 bits g=32, v_proj 8 bits row"


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_part_in_float(part):
    schemes = {name: words for name, words in QKV.items() if name != f"m.{part}_proj"}
    ((_, detail),) = names(schemes, floats=[f"m.{part}_proj"])
    assert f"{part}_proj float" in detail


def test_formats_that_vllm_does_not_read_may_differ():
    assert names(QKV | {"m.v_proj": "8 bits row"}, form="mlx") == []
    assert names(QKV | {"m.v_proj": "8 bits row"}, form="gguf") == []


def test_experts_named_by_mixtral():
    assert len(names({"m.0.w1": "a", "m.0.w3": "b", "m.0.w2": "c"})) == 1


def test_a_float_up_in_a_checkpoint(edited):
    def release(tensors, config):
        rows = tensors[f"{UP}.scales"].shape[1]
        for kind in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{UP}.{kind}"]
        tensors[f"{UP}.weight"] = np.ones((rows, 128), np.float16)

    (one,) = found(edited("gptq-v1-sym-g32", release), "fused-schemes")
    assert (one.where, one.detail) == (f"{LAYER}.mlp", "gate_proj 4 bits g=32, up_proj float")


def test_groups_of_compressed_tensors(edited):
    """gate with inputs in INT8, up without: the tensors are the same, the schemes differ."""

    def split(tensors, config):
        groups = config["quantization_config"]["config_groups"]
        other = json.loads(json.dumps(groups["group_0"])) | {"targets": ["re:.*up_proj"]}
        inputs = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
        groups["group_1"] = other | {"input_activations": inputs}

    (one,) = found(edited("ct-w4a16-g32", split), "fused-schemes")
    assert one.detail == "gate_proj 4 bits g=32, up_proj 4 bits g=32 per_token"
