"""Rows of an embedding that no token reads may hold anything, where they make no logit."""

import numpy as np
import pytest

from planish.reference.errors import CheckpointError
from planish.reference.files.load import load_weights, open_checkpoint


def test_rows_of_no_token_may_be_nan_in_an_embedding_that_is_no_head(tiny, tmp_path, caplog):
    tensors = tiny.tensors(tiny.values())
    embed = tensors["model.embed_tokens.weight"]
    embed[30], embed[47] = np.nan, np.inf  # the tokenizer has ids 0..29
    path = tiny.write(tmp_path / "model", None, tensors)
    found = load_weights(open_checkpoint(path)).embed
    assert not found[[30, 47]].any()
    assert np.array_equal(found[:30], embed[:30])
    (record,) = caplog.records
    assert "not finite, read as zeros: 2 rows without a token" in record.getMessage()
    (path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"found nan at \(30, 0\)"):
        load_weights(open_checkpoint(path))


@pytest.mark.parametrize(("row", "changes"), [(29, {}), (40, {"bos_token_id": 40})])
def test_rows_of_tokens_may_not_be_nan(tiny, tmp_path, row, changes):
    values = tiny.values(**changes)
    tensors = tiny.tensors(values)
    tensors["model.embed_tokens.weight"][[row, 47]] = np.nan
    with pytest.raises(CheckpointError, match=rf"found nan at \({row}, 0\)"):
        load_weights(open_checkpoint(tiny.write(tmp_path / "model", values, tensors)))


@pytest.mark.parametrize(("tied", "name"), [(True, "model.embed_tokens"), (False, "lm_head")])
def test_no_row_of_a_head_may_be_nan(tiny, tmp_path, tied, name):
    values = tiny.values(tie_word_embeddings=tied)
    tensors = tiny.tensors(values)
    tensors[f"{name}.weight"][47, 3] = np.nan
    with pytest.raises(CheckpointError, match=rf"{name}.weight: bad .*found nan at \(47, 3\)"):
        load_weights(open_checkpoint(tiny.write(tmp_path / "model", values, tensors)))
