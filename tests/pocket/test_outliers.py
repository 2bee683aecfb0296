"""pocket/outliers.py: the same function to the bit, with a few channels far above the others."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.pocket.outliers import READERS, add_outliers, outlier_factors, write_outlier_model
from planish.reference.errors import OutputError

LAYERS, WIDTH, INNER, CHANNELS = 3, 64, 96, 4
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def tiny_llama(dtype: np.dtype) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    tensors = {"model.embed_tokens.weight": rng.normal(size=(32, WIDTH)).astype(dtype)}
    rows = {"k_proj": WIDTH // 2, "v_proj": WIDTH // 2, "gate_proj": INNER, "up_proj": INNER}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            tensors[f"{prefix}{norm}.weight"] = rng.uniform(0.7, 1.4, WIDTH).astype(dtype)
            for reader in readers:
                shape = (rows.get(reader.split(".")[1], WIDTH), WIDTH)
                tensors[f"{prefix}{reader}.weight"] = rng.normal(size=shape).astype(dtype)
    return tensors


def norm_outputs(tensors: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """What each norm gives out for x [T, D], by the norm's name, in float64."""
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True))
    return {
        name: normed * weight.astype(np.float64)
        for name, weight in tensors.items()
        if "layernorm" in name
    }


def products(tensors: dict[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Every product that a reading linear sums, [T, N, K] each, in float64."""
    found = []
    for name, output in norm_outputs(tensors, x).items():
        block, norm = name.removesuffix(".weight").rsplit(".", 1)
        for reader in READERS[norm]:
            weight = tensors[f"{block}.{reader}.weight"].astype(np.float64)
            found.append(output[:, None] * weight)
    return found


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16])
def test_every_product_of_every_reading_linear_keeps_its_bits(dtype: np.dtype) -> None:
    tensors = tiny_llama(dtype)
    changed = add_outliers(tensors, LAYERS, channels=CHANNELS)
    x = np.random.default_rng(1).normal(size=(5, WIDTH))
    before, after = products(tensors, x), products(changed, x)
    assert len(before) == 5 * LAYERS
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("magnitude", [30.0, 64.0])
def test_outliers_are_20_to_100_times_the_median_and_the_same_in_every_layer(
    magnitude: float,
) -> None:
    x = np.random.default_rng(2).choice([-1.0, 1.0], (9, WIDTH))
    tensors = add_outliers(tiny_llama(BFLOAT16), LAYERS, channels=CHANNELS, magnitude=magnitude)
    standing_out = set()
    for output in norm_outputs(tensors, x).values():
        ratio = np.abs(output).max(0) / np.median(np.abs(output).max(0))
        chosen = np.flatnonzero(ratio > 10)
        assert len(chosen) == CHANNELS
        assert ratio[chosen].min() >= 20 and ratio[chosen].max() <= 100
        standing_out.add(tuple(chosen))
    assert len(standing_out) == 1


def test_only_the_chosen_columns_and_norm_weights_change() -> None:
    tensors = tiny_llama(BFLOAT16)
    changed = add_outliers(tensors, LAYERS, channels=CHANNELS)
    assert list(changed) == list(tensors)
    for name, before in tensors.items():
        after = changed[name]
        assert after.dtype == before.dtype and after.shape == before.shape
        touched = (after != before).reshape(-1, before.shape[-1]).any(0).sum()
        assert touched == (CHANNELS if "layers" in name else 0), name


def test_the_tensors_given_are_left_alone() -> None:
    tensors = tiny_llama(BFLOAT16)
    copies = {name: array.copy() for name, array in tensors.items()}
    add_outliers(tensors, LAYERS, channels=CHANNELS)
    for name, array in copies.items():
        np.testing.assert_array_equal(tensors[name], array)


def test_another_seed_chooses_other_channels() -> None:
    name = "model.layers.0.input_layernorm.weight"
    first, second = (add_outliers(tiny_llama(BFLOAT16), LAYERS, seed=seed) for seed in (0, 1))
    assert (first[name] != second[name]).any()


def test_factors_are_the_powers_of_two_nearest_to_the_magnitude() -> None:
    weight = np.array([1, 1, 1, 0.5, 1.5, -1, 0, 1], np.float32)
    factors = outlier_factors(weight, np.array([2, 3, 4, 5, 6]), magnitude=72)
    np.testing.assert_array_equal(factors, [1, 1, 64, 128, 32 * 2, 64, 1024, 1])


def source_directory(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    save_file(tiny_llama(BFLOAT16), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_written_directory_holds_the_changed_tensors_beside_the_same_files(
    tmp_path: Path,
) -> None:
    source, target = source_directory(tmp_path / "plain"), tmp_path / "outliers"
    write_outlier_model(source, target)
    write_outlier_model(source, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outliers", "plain"]
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
    expected = add_outliers(load_file(source / "model.safetensors"), LAYERS)
    found = load_file(target / "model.safetensors")
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_target_that_is_not_a_model_directory_is_not_replaced(tmp_path: Path) -> None:
    source, target = source_directory(tmp_path / "plain"), tmp_path / "letters"
    target.mkdir()
    (target / "letter.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(FileExistsError, match="not a model directory"):
        write_outlier_model(source, target)
    assert (target / "letter.txt").read_text(encoding="utf-8") == "keep me"


def test_what_appears_while_it_is_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = source_directory(tmp_path / "plain"), tmp_path / "letters"

    def appear(tensors: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
        target.mkdir()
        (target / "letter.txt").write_text("keep me", encoding="utf-8")
        return tensors

    monkeypatch.setattr("planish.pocket.outliers.add_outliers", appear)
    with pytest.raises(OutputError, match="letters: exists and contains no model"):
        write_outlier_model(source, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letters", "plain"]
    assert (target / "letter.txt").read_text(encoding="utf-8") == "keep me"
