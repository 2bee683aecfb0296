"""AWQ beside llm-awq, its authors' program: the same codes where the same scales are given.

The searches differ (planish also tries AutoAWQ's scales), so the scales that the program chose are
given to planish here. tests/fast/quantize/test_originals.py compares whole searches.
"""

import numpy as np

from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.folds import block_folds
from planish.reference.model.weights import block_linears
from planish.reference.quantize.fold import apply_fold
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.awq import clip_block, clip_groups
from planish.reference.quantize.methods.rtn import quantize_block as round_to_nearest
from planish.reference.quantize.observe import embed_samples, run_block
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.schemes import linear_names
from tests import originals
from tests.reference.quantize.conftest import same_schemes

CHECKPOINT = open_checkpoint(originals.MODEL)
SCHEME = recipe("W4A16", group_size=32, rule="minmax", scale_dtype="float32").default
NORMS = ("input_layernorm", "post_attention_layernorm")


def scaled_blocks(golden):
    """The float blocks with the program's scales folded in, and a job for each."""
    config, weights = CHECKPOINT.config, load_weights(CHECKPOINT)
    hidden = embed_samples(config, weights, [row.astype(np.int32) for row in golden["calibration"]])
    for layer, block in enumerate(weights.blocks):
        names, schemes = linear_names(CHECKPOINT, layer), same_schemes(block, SCHEME)
        given = {"rule": "minmax", "names": names, "inputs": hidden, "float_inputs": hidden}
        job = BlockJob(config=config, schemes=schemes, layer=layer, **given)
        hidden = [run_block(config, block, x) for x in hidden]
        for fold in block_folds(config, block):
            keys = (f"{names[part]}/awq_scale" for part in fold.linears)
            block = apply_fold(block, fold, golden[next(key for key in keys if key in golden)])
        yield job, block


def shares_of(job, block, golden):
    """The share of equal codes of every linear of a rounded block."""
    return {
        part: originals.same_share(layer.weight, originals.codes_of(golden, job.names[part]))
        for part, layer in block_linears(round_to_nearest(job, block)).items()
    }


def test_the_folds_and_the_grid_give_the_same_codes_from_the_same_scales():
    golden = originals.stored("awq-asym-no-clip")
    for job, block in scaled_blocks(golden):
        assert set(shares_of(job, block, golden).values()) == {1.0}
        gains = [golden[f"model.layers.{job.layer}.{name}/gain"] for name in NORMS]
        for norm, gain in zip((block.attention_norm, block.mlp_norm), gains, strict=True):
            np.testing.assert_allclose(norm.weight, gain, rtol=1e-6)


def test_clipping_over_all_tokens_instead_of_512_moves_few_codes():
    """Measured: no code of q and k, up to 3 % of the others."""
    golden = originals.stored("awq-asym")
    for job, block in scaled_blocks(golden):
        shares = shares_of(job, clip_block(job, block, clip_groups), golden)
        assert shares.pop("q") == shares.pop("k") == 1.0
        assert min(shares.values()) > 0.96 and np.mean(list(shares.values())) > 0.98


def test_plain_rounding_gives_other_codes():
    """So equal codes above say something about the scales."""
    golden = originals.stored("awq-asym-no-clip")
    weights = load_weights(CHECKPOINT)
    for layer, block in enumerate(weights.blocks):
        schemes, names = same_schemes(block, SCHEME), linear_names(CHECKPOINT, layer)
        job = BlockJob(config=CHECKPOINT.config, schemes=schemes, rule="minmax", names=names)
        assert max(shares_of(job, block, golden).values()) < 0.9
