"""AWQ of its authors (https://github.com/mit-han-lab/llm-awq) on whole blocks.

auto_scale_block, apply_scale, auto_clip_block, apply_clip and pseudo_quantize_tensor run
unchanged. Its own loop over the blocks (pre_quant.run_awq) expects an older transformers and a
data set from the network; `quantize_model` below does the same: every block gets the float
outputs of the one before it. There is no GPU, so moving something there does nothing, and the
module of CUDA kernels, which the search does not call, is empty.
"""

from __future__ import annotations

import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import Coded, Result, code

CONFIG = {"zero_point": True, "q_group_size": 32}
NORMS = ("input_layernorm", "post_attention_layernorm")


def import_awq(clone: Path) -> types.SimpleNamespace:
    """The program's functions, from a clone."""
    sys.path.insert(0, str(clone))
    sys.modules["awq_inference_engine"] = types.ModuleType("awq_inference_engine")
    torch.nn.Module.cuda = torch.Tensor.cuda = lambda self, *_: self
    torch.cuda.empty_cache = lambda: None
    from awq.quantize import auto_clip, auto_scale, quantizer

    return types.SimpleNamespace(
        search_scales=auto_scale.auto_scale_block,
        apply_scales=auto_scale.apply_scale,
        search_clips=auto_clip.auto_clip_block,
        apply_clips=auto_clip.apply_clip,
        quantize=quantizer.pseudo_quantize_tensor,
    )


def capture(model: transformers.LlamaForCausalLM, ids: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """The hidden states that the first block gets, and the other arguments of every block."""
    found: list[Any] = []

    def keep(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append((positional[0], dict(named)))

    hook = model.model.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(torch.from_numpy(ids.astype(np.int64)), use_cache=False)
    hook.remove()
    return found[0]


def observe(block: torch.nn.Module, hidden: Any, named: dict[str, Any]) -> tuple[Any, Any]:
    """The block's output, and the inputs of its linears by name."""
    inputs: dict[str, list[Any]] = defaultdict(list)

    def keep(name: str) -> Callable[..., None]:
        return lambda _, given, __: inputs[name].append(given[0].detach().clone())

    linears = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
    hooks = [linear.register_forward_hook(keep(name)) for name, linear in linears.items()]
    with torch.no_grad():
        output = block(hidden, **named)
    for hook in hooks:
        hook.remove()
    return output, {name: torch.cat(parts) for name, parts in inputs.items()}


def quantize_model(awq: Any, model: Any, ids: np.ndarray, clip: bool = True) -> Result:
    """Every block of a float model, which is changed."""
    hidden, named = capture(model, ids)
    linears: dict[str, Coded] = {}
    norms: dict[str, np.ndarray] = {}
    more: dict[str, np.ndarray] = {}
    for layer, block in enumerate(model.model.layers):
        output, inputs = observe(block, hidden, named)
        prefix = f"model.layers.{layer}."
        scales = awq.search_scales(block, dict(named), 4, CONFIG, inputs)
        awq.apply_scales(block, scales, inputs)
        more |= {f"{prefix}{parts[0]}/awq_scale": s.numpy() for _, parts, s in scales}
        if clip:
            awq.apply_clips(block, awq.search_clips(block, 4, CONFIG, inputs))
        linears |= {prefix + name: code_linear(awq, part) for name, part in linears_of(block)}
        norms |= {prefix + n: block.get_submodule(n).weight.detach().numpy() for n in NORMS}
        hidden = output
    return Result(linears=linears, norms=norms, more=more)


def linears_of(block: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    return [(n, m) for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)]


def code_linear(awq: Any, linear: torch.nn.Linear) -> Coded:
    """The codes of a linear's scaled and clipped weight."""
    weight, size = linear.weight.detach(), CONFIG["q_group_size"]
    values = awq.quantize(weight, n_bit=4, **CONFIG)
    _, scale, zero = (x.numpy() for x in awq.quantize(weight, n_bit=4, get_scale_zp=True, **CONFIG))
    return code(values.numpy(), scale, zero, size)
