"""What the pictures of smoothing show."""

import numpy as np
import pytest

from planish.figures.collect import collect_panels
from planish.reference.files.load import open_checkpoint


@pytest.mark.parametrize("linear", ["q", "up"])
def test_smoothing_moves_magnitude_from_activations_to_weights(tiny_llama, linear):
    """X / s and W * s: of each channel, the product of both peaks stays what it was."""
    sample = np.arange(3, 40, dtype=np.int32)
    panels = collect_panels(open_checkpoint(tiny_llama), sample, 1, linear, 0.5)
    peaks = {name: panel.max(axis=0) for name, panel in panels.items()}
    before = peaks["activations before"] * peaks["weights before"]
    after = peaks["activations after"] * peaks["weights after"]
    np.testing.assert_allclose(after, before, rtol=1e-4)
    assert not np.allclose(peaks["weights after"], peaks["weights before"], rtol=1e-2)
