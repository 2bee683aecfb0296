"""The types of float tensors: cast without a silent overflow, and what config.json declares.

Programs cast what they load to the declared dtype, vLLM also the scales of weight-only linears, so
it must hold them:

    float16     if every INT4 scale is stored in float16 and no float tensor overflows in it
    the model's own    if every scale is exact in it
    float32     otherwise
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from planish.reference.errors import QuantizationError, RecipeError, suggest
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.linear import Linear, quantized_weight

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
LARGEST = 65504.0  # of float16


def require_dtype(name: str | None) -> None:
    """Raise RecipeError for a dtype that is none of DTYPES."""
    if name is not None and name not in DTYPES:
        expected = f"one of {', '.join(DTYPES)}{suggest(name, DTYPES)}"
        raise RecipeError("unknown", name="dtype", expected=expected, found=repr(name))


def cast(checkpoint: Checkpoint, name: str, tensor: np.ndarray, dtype: str | None) -> np.ndarray:
    """A float tensor in a dtype, None: as it is; QuantizationError for a number that overflows."""
    if dtype is None or tensor.dtype == DTYPES[dtype]:
        return tensor
    with np.errstate(over="ignore", invalid="ignore"):
        found = tensor.astype(DTYPES[dtype])
    lost = ~np.isfinite(found) & np.isfinite(tensor)
    if lost.any():
        largest = np.abs(tensor.astype(np.float32))[lost].max()
        expected = f"numbers that {dtype} holds; --dtype float32 or bfloat16 has a wider range"
        raise QuantizationError(
            "overflows", path=checkpoint.path, name=name, expected=expected, found=largest
        )
    return found


def declared_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that config.json declares; float32 if it declares none that is known."""
    found = checkpoint.values.get("dtype", checkpoint.values.get("torch_dtype"))
    return found if isinstance(found, str) and found in DTYPES else "float32"


class Seen:
    """What was seen of a model while it was written: which dtypes hold its numbers."""

    def __init__(self) -> None:
        self.int4_scales = {DTYPES[name]: 0 for name in ("float32", "float16")}
        self.exact = dict.fromkeys(DTYPES, True)
        self.fits_float16 = True
        self.computed = False

    def see_linear(self, linear: Linear) -> None:
        """Look at the scales and offsets of a quantized linear."""
        weight = quantized_weight(linear)
        if weight.scheme.bits == 4:
            self.int4_scales[weight.scale.dtype] += 1
        for values in (weight.scale, weight.offset):
            for name, dtype in DTYPES.items():
                if values is not None and self.exact[name]:
                    self.exact[name] = bool((values.astype(dtype) == values).all())

    def see_float(self, tensor: np.ndarray, computed: bool) -> None:
        """Look at a float tensor. computed: whether it is not the file's own."""
        self.computed |= computed
        if tensor.dtype != DTYPES["float16"] and self.fits_float16:
            self.fits_float16 = bool(np.abs(tensor).max(initial=0) <= LARGEST)

    def choose(self, own: str) -> str:
        """What config.json declares for a quantized model whose own dtype is `own`."""
        narrow, wide = self.int4_scales[DTYPES["float16"]], self.int4_scales[DTYPES["float32"]]
        if narrow and not wide and self.fits_float16:
            return "float16"
        return own if self.exact[own] else "float32"
