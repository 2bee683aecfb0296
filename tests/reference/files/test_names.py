"""Names of tensors: with a wrapper's prefix, and of tensors that no graph reads."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from planish.reference.errors import CheckpointError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.shards import INDEX, SINGLE

LAYER = "model.layers.0."
Q = LAYER + "self_attn.q_proj"


def notices(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "planish"]


RENAMED = {
    "the base model alone": lambda name: name.removeprefix("model."),
    "of a trainer": lambda name: f"model.{name}",
    "of DDP": lambda name: f"module.{name}",
    "of torch.compile": lambda name: f"_orig_mod.{name}",
    "of torch.compile by part": lambda name: name.replace("self_attn.", "_orig_mod.self_attn."),
    "of a larger model": lambda name: f"language_model.{name}",
    "of a larger model today": lambda name: name.replace("model.", "model.language_model."),
    "of both": lambda name: f"module._orig_mod.transformer.{name}",
}


@pytest.mark.parametrize("prefix", RENAMED)
def test_a_wrapper_s_prefix_is_read_away(tiny, tmp_path, prefix):
    plain = tiny.tensors(tiny.values())
    renamed = {RENAMED[prefix](name): tensor for name, tensor in plain.items()}
    assert renamed.keys() != plain.keys()
    weights = load_weights(open_checkpoint(tiny.write(tmp_path / "model", None, renamed)))
    assert np.array_equal(weights.embed, plain["model.embed_tokens.weight"])
    assert np.array_equal(weights.head.weight, plain["lm_head.weight"])
    assert np.array_equal(weights.blocks[0].q.weight, plain[f"{Q}.weight"])


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("module.model.norm.weight", "model.norm.weight: is given twice"),
        ("draft.model.embed_tokens.weight", "draft.*is not a tensor of this model"),
    ],
)
def test_names_that_could_be_read_in_two_ways_are_refused(tiny, tmp_path, also, message):
    tensors = tiny.tensors(tiny.values())
    tensors[also] = tensors[also.partition(".")[2]].copy()
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tiny.write(tmp_path / "model", None, tensors))


BOOLS, NUMBERS = np.tril(np.ones((1, 1, 8, 8), bool)), np.ones(4, np.float32)
UNUSED = {
    "score.weight": np.ones((2, 32), np.float32),
    "model.classifier.dense.bias": NUMBERS,
    "v_head.summary.weight": NUMBERS,
    LAYER + "self_attn.rotary_emb.inv_freq": NUMBERS.astype(np.float64),
    LAYER + "self_attn.rotary_emb.cos_cached": NUMBERS.astype(ml_dtypes.float8_e4m3fn),
    LAYER + "self_attn.sin_cached": NUMBERS,
    LAYER + "self_attn.k_scale": np.ones((), np.float32),
    LAYER + "attn.v_scale": NUMBERS,
    LAYER + "self_attn.bias": BOOLS,
    LAYER + "self_attn.masked_bias": np.array(-1e4, np.float32),
    "model.position_ids": np.arange(8)[None],
    "vision_tower.encoder.weight": NUMBERS,
    f"{Q}.bias": np.zeros(32, np.float32),
    "model.norm.bias": np.zeros(32, np.float16),
    "lm_head.bias": np.zeros(48, ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_tensor_that_no_graph_reads_is_passed_over(tiny, tmp_path, caplog, name):
    tensors = tiny.tensors(tiny.values()) | {name: UNUSED[name]}
    checkpoint = open_checkpoint(tiny.write(tmp_path / "model", None, tensors))
    assert name not in checkpoint.entries and list(checkpoint.unused) == [name]
    assert notices(caplog) == [
        f"{tmp_path}/model: tensors that the model does not use, not read: 1 ({name})"
    ]


def test_one_notice_counts_them_all_and_names_the_first(tiny, tmp_path, caplog):
    path = tiny.write(tmp_path / "model", None, tiny.tensors(tiny.values()) | UNUSED)
    assert open_checkpoint(path).unused.keys() == UNUSED.keys()
    (line,) = notices(caplog)
    assert "not read: 15 (" in line and line.endswith(", ...)") and line.count(", ") == 4


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        (f"{Q}.bias", np.eye(32, dtype=np.float32)[0], "expected no bias here, or zeros"),
        (f"{Q}.bias", np.full(32, np.nan, np.float32), "expected no bias here, or zeros"),
        (f"{Q}.bias", np.zeros(32, np.int64), "expected no bias here"),
        ("surprise.bias", np.zeros(32, np.float32), ""),
        ("model.layers.2.self_attn.q_proj.bias", np.zeros(32, np.float32), ""),
        (f"{Q}.lora_A.weight", np.zeros((4, 32), np.float32), "the adapter merged"),
        (LAYER + "self_attn.q_norm.weight", np.ones(8, np.float32), ""),
        (LAYER + "self_attn.bias", np.zeros(32, np.float32), ""),
        (LAYER + "mlp.score.weight", NUMBERS, ""),
    ],
)
def test_a_tensor_that_would_change_a_number_is_refused(tiny, tmp_path, name, tensor, expected):
    tensors = tiny.tensors(tiny.values()) | {name: tensor}
    message = f"{name}: is not a tensor of this model.*{expected}"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tiny.write(tmp_path / "model", None, tensors))


def indexed(tiny, path, tied, *more):
    """A model of one shard, whose index names more tensors."""
    tensors = tiny.tensors(tiny.values(tie_word_embeddings=tied))
    tiny.write(path, tiny.values(tie_word_embeddings=tied), tensors)
    (path / SINGLE).rename(path / "a.safetensors")
    weight_map = dict.fromkeys([*tensors, *more], "a.safetensors")
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_an_index_may_name_what_nobody_needs(tiny, tmp_path):
    names = ("lm_head.weight", LAYER + "self_attn.rotary_emb.inv_freq", "score.weight")
    assert open_checkpoint(indexed(tiny, tmp_path / "model", True, *names)).entries
    with pytest.raises(CheckpointError, match=r"a\.safetensors: mtp\.weight: is missing"):
        open_checkpoint(indexed(tiny, tmp_path / "other", True, "mtp.weight"))


def test_an_untied_head_must_be_in_a_shard(tiny, tmp_path):
    path = indexed(tiny, tmp_path / "model", False)
    tensors = tiny.tensors(tiny.values())
    del tensors["lm_head.weight"]
    save_file(tensors, path / "a.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight: is missing"):
        open_checkpoint(path)
