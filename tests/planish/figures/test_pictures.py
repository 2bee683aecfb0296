"""The pictures: the numbers that they show, and a file for each that README and docs show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planish.figures import absmax, alpha, flow, fold, group, size, smoothing
from planish.figures.__main__ import PICTURES
from planish.figures.collect import collect_panels
from planish.reference.files.load import open_checkpoint

pytest.importorskip("matplotlib")
IMAGES = Path(__file__).parents[3] / "docs" / "images"


def test_the_group_is_worked_through_by_the_grids():
    """Literal numbers: m = -0.8, so scale = 0.1, rounded to float16; a_scale = 2.54 / 127."""
    found = group.work_through(group.WEIGHTS, group.INPUTS)
    assert found["scale"] == np.float16(0.1) and found["a_scale"] == np.float32(0.02)
    assert found["codes"].tolist() == [[9, 4, 11, 9, 0, 11, 14, 6]]
    assert found["x_codes"].tolist() == [[75, -10, 35, 127, 5, -60, 20, 45]]
    assert found["total"].tolist() == [157]
    np.testing.assert_allclose(found["y"], 157 * 0.1 * 0.02, rtol=1e-3)


@pytest.mark.matrix(4)
@pytest.mark.parametrize("picture", [alpha, flow, fold, group])
def test_a_diagram_is_drawn(picture, tmp_path):
    picture.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.matrix(2)
@pytest.mark.parametrize("picture", [smoothing, absmax])
def test_a_layer_is_drawn(picture, tiny_llama, tmp_path):
    sample = np.arange(3, 40, dtype=np.int32)
    panels = collect_panels(open_checkpoint(tiny_llama), sample, 1, "q", 0.5)
    picture.draw(panels, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_quality_is_drawn(rows, tmp_path):
    size.draw(rows, tmp_path / "size.png")
    assert (tmp_path / "size.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", alpha.SIZES)
def test_the_error_is_least_between_the_ends(size):
    errors = alpha.errors_by_alpha(size)
    best = int(np.argmin(errors))
    assert 0.4 <= alpha.ALPHAS[best] <= 0.6
    assert 2 * errors[best] < min(errors[0], errors[-1])


@pytest.fixture
def rows():
    from planish.compare.quality.measure import Quality

    found = {"standard_error": 0.2, "delta": 0.1, "delta_error": 0.01, "top1": 0.9}
    names = {"float": 0.0, "naive": 1.7, "W8A8": 0.001, "W4A8-g32-alpha0.5": 0.01}
    return [
        Quality(
            recipe=name, perplexity=16.1, mean_kl=kl, size=7 * 10**6, tokens_per_second=9, **found
        )
        for name, kl in names.items()
    ]


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_shown_and_small(name):
    pages = [IMAGES.parents[1] / "README.md", *IMAGES.parent.glob("*.md")]
    assert any(f"images/{name}.png" in page.read_text(encoding="utf-8") for page in pages)
    assert 5_000 < (IMAGES / f"{name}.png").stat().st_size < 150_000
