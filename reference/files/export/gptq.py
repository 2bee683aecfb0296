"""GPTQ versions 1 and 2, as GPTQModel writes them.

For a linear P of N outputs, K inputs and G groups, b bits a code, 4 or 8:

    P.qweight   int32 [K b / 32, N]    code k of output n, lowest bits first along K
    P.qzeros    int32 [G, N b / 32]    zero points, lowest bits first along N
    P.scales    float16 [G, N]         W[n, k] = scales[g, n] * (q[k, n] - z[g, n])
    P.g_idx     int32 [K]              g of each input, also where it is k // group_size

Version 1 stores z - 1, and programs do not agree about z = 0, so it is written only for symmetric
schemes: z is then 2^(b-1) everywhere. Version 2 stores z. Groups are stored as they are, a short
last one, too. llama.cpp needs g_idx. Source: GPTQModel 7.7, nn_modules/qlinear, utils/model.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.reference.files.export.codes import regrouped, unsigned_codes
from planish.reference.files.export.integers import float16_scales, integer_zero_points
from planish.reference.files.export.protocol import Facts, Refusal, Shape
from planish.reference.files.export.targets import name_targets
from planish.reference.files.formats.words import pack_fields
from planish.reference.linear import Linear, quantized_weight
from planish.reference.scheme import Scheme

HEAD = "lm_head"  # has a key of its own
Settings = tuple[tuple[str, int | bool], ...]
MULTIPLE = 32  # of outputs and of inputs, which the programs that read it require


@dataclass(frozen=True)
class Gptq:
    """The writer of one version."""

    version: int  # 1 or 2

    @property
    def NAME(self) -> str:  # noqa: N802  (as of a module)
        """The format's name, which is also its `checkpoint_format`."""
        return "gptq" if self.version == 1 else "gptq_v2"

    def refuse(self, scheme: Scheme, shape: Shape) -> Refusal | None:
        """Refuses quantized inputs, odd shapes, and in version 1 asymmetric schemes."""
        if scheme.activation != "float":
            return refuse_inputs(scheme)
        if self.version == 1 and not scheme.symmetric:
            expected = "symmetric codes: version 1 has no zero point of 0"
            nearest = "mlx" if scheme.offset else "gptq_v2"
            return Refusal(expected=expected, found=str(scheme), nearest=nearest)
        return refuse_shape(scheme, shape)

    def regroup(self, scheme: Scheme, shape: Shape) -> Scheme:  # noqa: ARG002
        """The scheme itself; a scale of the whole weight is repeated for its rows."""
        return regrouped(scheme, -1) if scheme.granularity == "per_tensor" else scheme

    def tensors(self, linear: Linear, scheme: Scheme) -> dict[str, np.ndarray]:
        """qweight, qzeros, scales and g_idx."""
        weight = quantized_weight(linear)
        zeros = integer_zero_points(weight, "mlx")
        codes = unsigned_codes(weight)  # [N, K], in the order of the groups
        cols = weight.shape[1]
        groups = np.arange(cols, dtype=np.int32)
        groups //= cols if scheme.group_size == -1 else scheme.group_size
        if weight.permutation is not None:
            place = np.argsort(weight.permutation)  # of each input among the codes
            codes, groups = codes[:, place], groups[place]
        stored = zeros - np.uint8(1) if self.version == 1 else zeros
        return {
            "qweight": pack_fields(codes, scheme.bits).T,
            "qzeros": pack_fields(stored.T, scheme.bits),
            "scales": float16_scales(weight).T,
            "g_idx": groups,
        }

    def config(self, schemes: Mapping[str, Scheme | None], facts: Facts) -> dict[str, Any]:
        """`quantization_config`: what most linears have, and exceptions as `dynamic`."""
        values = common_values(schemes, facts)
        values |= {"quant_method": "gptq", "method": "gptq", "pack_dtype": "int32"}
        values |= {"checkpoint_format": self.NAME, "format": self.NAME}
        return {"quantization_config": values}


VERSION_1, VERSION_2 = Gptq(1), Gptq(2)


def refuse_inputs(scheme: Scheme) -> Refusal:
    """Why a linear with INT8 inputs cannot be held."""
    held = scheme.activation in ("per_token", "static")
    nearest = "compressed-tensors" if held else "planish"
    return Refusal(expected="inputs in float", found=str(scheme), nearest=nearest)


def refuse_shape(scheme: Scheme, shape: Shape) -> Refusal | None:
    """Why a linear of N outputs and K inputs cannot be held; None if it can."""
    if shape[0] % MULTIPLE == 0 == shape[1] % MULTIPLE:
        return None
    expected = f"outputs and inputs in multiples of {MULTIPLE}"
    nearest = "planish" if scheme.offset or scheme.act_order else "compressed-tensors"
    return Refusal(expected=expected, found=f"{shape[0]} and {shape[1]}", nearest=nearest)


def common_values(schemes: Mapping[str, Scheme | None], facts: Facts) -> dict[str, Any]:
    """What GPTQ and AWQ declare: bits, group size and the rest of most linears, and exceptions.

    `dynamic` has the exceptions: +:expression for other settings, -:expression for floats.
    """
    found = {prefix: settings(scheme) for prefix, scheme in schemes.items() if prefix != HEAD}
    head = schemes.get(HEAD)
    if head is not None:
        found[HEAD] = settings(head)
    usual = Counter(own for own in found.values() if own is not None).most_common(1)[0][0]
    values: dict[str, Any] = {**dict(usual), "lm_head": head is not None}
    targets = name_targets(found)
    exceptions = {
        ("-:" if own is None else "+:") + anchor(target): dict(own or ())
        for own, names in targets.items()
        for target in names
        if own != usual
    }
    if exceptions:
        values["dynamic"] = exceptions
    return values | {"meta": {"quantizer": [facts.program.replace(" ", ":")]}}


def anchor(target: str) -> str:
    """A target as an expression that matches whole names."""
    exact = not target.startswith("re:")
    return f"^{re.escape(target)}$" if exact else f"^{target.removeprefix('re:')}"


def settings(scheme: Scheme | None) -> Settings | None:
    """What a config says about a linear's scheme, None if it is in floats."""
    if scheme is None:
        return None
    values = (scheme.bits, scheme.group_size, scheme.act_order, scheme.symmetric)
    return tuple(zip(("bits", "group_size", "desc_act", "sym"), values, strict=True))
