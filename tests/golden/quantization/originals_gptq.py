"""GPTQ of its authors (https://github.com/IST-DASLab/gptq) on single linears.

The class GPTQ runs unchanged. torch.cuda.synchronize, which it calls for its timer, is replaced
because there is no GPU, and Quantizer.find_params is wrapped to keep the scales that it finds:
the program itself returns only the dequantized weight.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Coded, Stored, code, pack, relative_error
from subjects import Layer

DAMPING = 0.01
GROUP_SIZES = (32, 128, -1)  # 128 leaves 64 of 192 inputs in the last group


def import_gptq(clone: Path) -> tuple[Any, Any]:
    """The modules gptq and quant of a clone."""
    sys.path.insert(0, str(clone))
    torch.cuda.synchronize = lambda: None
    import gptq
    import quant

    return gptq, quant


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """name -> arguments: symmetric or not, group size, order of columns.

    A group gets its scale from weights that have the errors of all columns before it, if a block
    of columns is one group. `stale` is the program's own block of 128 columns: there a group of 32
    does not yet have the errors of the columns of its block before it.
    """
    for sym, group in itertools.product((True, False), GROUP_SIZES):
        name, block = f"{'sym' if sym else 'asym'}_g{group}", 128 if group == -1 else group
        given = {"sym": sym, "groupsize": group, "blocksize": block}
        yield name, given
        yield f"{name}_act", {**given, "actorder": True, "static_groups": group != -1}
        if group == 32:
            yield f"{name}_stale", {**given, "blocksize": 128}


def quantize(modules: tuple[Any, Any], layer: Layer, sym: bool, **given: Any) -> Coded:
    """The program's codes, scales and zero points of one linear."""
    gptq, quant = modules
    linear = torch.nn.Linear(*reversed(layer.w.shape), bias=False)
    linear.weight.data = torch.from_numpy(layer.w.astype(np.float32))
    found: list[tuple[np.ndarray, np.ndarray]] = []

    class Recording(quant.Quantizer):
        def find_params(self, x: torch.Tensor, weight: bool = False) -> None:
            super().find_params(x, weight)
            found.append((self.scale.flatten().numpy().copy(), self.zero.flatten().numpy().copy()))

    solver = gptq.GPTQ(linear)
    solver.quantizer = Recording()
    solver.quantizer.configure(4, perchannel=True, sym=sym, mse=False)
    solver.add_batch(torch.from_numpy(layer.x)[None], None)
    solver.fasterquant(percdamp=DAMPING, **given)
    size = layer.w.shape[1] if given["groupsize"] == -1 else given["groupsize"]
    groups = -(-layer.w.shape[1] // size)
    scale, zero = (np.stack(kind, axis=1) for kind in zip(*found[-groups:], strict=True))
    return code(linear.weight.detach().numpy(), scale, zero, size)


def record_layer(modules: tuple[Any, Any], layer: Layer) -> Stored:
    """The inputs, and the program's result under every setting, as SETTING/key."""
    stored: Stored = {"w": layer.w, "x_codes": layer.codes, "x_gains": layer.gains}
    x = layer.x.astype(np.float64)
    for name, given in settings():
        coded = quantize(modules, layer, **given)
        pair = (x @ weight.astype(np.float64).T for weight in (layer.w, coded.values))
        stored[f"{name}/codes"] = pack(coded.codes)
        stored[f"{name}/scale"] = coded.scale
        stored[f"{name}/zero"] = coded.zero
        stored[f"{name}/error"] = np.array(relative_error(*pair))
    return stored
