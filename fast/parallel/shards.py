"""The linears of a model, cut for one of several processes.

    linear          outputs of a process                             what it computes with them
    q, k, v         those of some key-value heads, and their queries its heads' attention
                    or, where heads do not divide, some, gathered    all heads' attention
    o, down         some, gathered                                   the next norm, on all outputs
    gate, up        some; their product is gathered
    lm_head         some of the vocabulary; logits are gathered
    experts         some outputs of every expert, if the kernels compute them; else all

Embeddings, norms and routers are whole on each process; of an embedding in a mapped file a process
reads only the rows of its tokens. Source of the idea: Megatron-LM, arXiv 1909.08053, section 3,
which sums o and down over its processes; here every sum stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from planish.fast.model.weights import PlacedExperts, place_block, place_stack
from planish.fast.parallel.cut import TILE, Rows, cut_linear, share_rows
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.experts import stack_experts
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Block, Experts, Mlp, Weights
from planish.reference.quantized import QuantizedWeight


@dataclass(frozen=True)
class Shard:
    """Some outputs of a linear, those of one device.

    outputs: of the whole linear. gathered: whether its results are gathered at once. sliced:
    whether the linear is whole, and the results of other heads are dropped.
    """

    layer: Linear
    outputs: int
    gathered: bool = True
    sliced: bool = False


@dataclass(frozen=True)
class HeadWeights:
    """A norm's weights [heads, Hd], which are cut by heads; no pytree node."""

    weight: np.ndarray


jax.tree_util.register_dataclass(
    Shard, data_fields=("layer",), meta_fields=("outputs", "gathered", "sliced")
)


def splits_heads(config: ModelConfig, parts: int) -> bool:
    """Whether each process can have some heads: key-value heads divide, and no head differs.

    ALiBi's slopes are constants of a program, and one norm over all heads needs all of them.
    """
    divides = config.num_kv_heads % parts == 0
    return divides and config.alibi is None and config.qk_norm != "width"


@dataclass(frozen=True)
class Cutter:
    """Cuts for process `index` of `parts`."""

    config: ModelConfig
    index: int
    parts: int
    exact: bool = True  # whether cut products of floats keep their bits

    def outer(self, weights: Weights) -> Weights:
        """Everything except the blocks, in the layout that runs."""
        head: Any = None if weights.head is None else self.gathered(weights.head)
        return place_block(replace(weights, blocks=(), head=head))

    def block(self, block: Block) -> Block:
        """One block in the layout that runs."""
        if splits_heads(self.config, self.parts):
            changed: dict[str, Any] = {name: self.heads(getattr(block, name)) for name in "qkv"}
            changed |= {name: self.norm(getattr(block, name)) for name in ("q_norm", "k_norm")}
        else:
            changed = {name: self.gathered(getattr(block, name)) for name in "qkv"}
        changed |= {"o": self.gathered(block.o), "mlp": self.mlp(block.mlp)}
        return place_block(replace(block, **changed))

    def keeps(self, *layers: Linear | None) -> bool:
        """Whether some linears stay whole, because their products of floats would change."""
        given = [layer for layer in layers if layer is not None]
        return not self.exact and any(layer.activation == "float" for layer in given)

    def gathered(self, layer: Linear, axis: int = 0) -> Any:
        """Some outputs, which are gathered; a linear that stays whole itself."""
        if self.keeps(layer):
            return layer
        outputs = count_outputs(layer, axis)
        return Shard(cut_linear(layer, share_rows(outputs, self.index, self.parts), axis), outputs)

    def heads(self, layer: Linear) -> Shard:
        """The outputs of some heads, which stay where they are computed."""
        outputs = count_outputs(layer)
        if self.keeps(layer):
            return Shard(layer, outputs, gathered=False, sliced=True)
        count = outputs // self.parts
        rows = Rows(self.index * count, count)
        return Shard(cut_linear(layer, rows), outputs, gathered=False)

    def norm(self, norm: Norm | None) -> Norm | None:
        """A norm of heads; weights of each head are cut."""
        if norm is None or self.config.qk_norm != "each_head":
            return norm
        found: dict[str, Any] = {
            name: HeadWeights(array)
            for name in ("weight", "bias")
            if (array := getattr(norm, name)) is not None
        }
        return replace(norm, **found)

    def mlp(self, mlp: Mlp | Experts) -> Any:
        """An MLP, or a mixture."""
        if isinstance(mlp, Experts):
            return self.experts(mlp)
        if self.keeps(mlp.gate, mlp.up):
            return replace(mlp, down=self.gathered(mlp.down))
        gate = None if mlp.gate is None else self.gathered(mlp.gate)
        return Mlp(gate, self.gathered(mlp.up), self.gathered(mlp.down))

    def experts(self, mlp: Experts) -> Any:
        """A mixture whose experts are cut, if they are in tiles."""
        whole = stack_experts(mlp.experts)
        if getattr(whole.up.weight, "layout", None) != "tiles":
            return mlp
        names = ("gate", "up", "down")
        found: dict[str, Any] = dict.fromkeys(names)
        for name in names:
            stack = getattr(whole, name)
            if stack is not None:
                shard = self.gathered(stack, axis=1)
                found[name] = replace(shard, layer=place_stack(shard.layer))
        return PlacedExperts(mlp.router, **found)


def count_outputs(layer: Linear, axis: int = 0) -> int:
    """N of a linear, or of each linear of a stack."""
    weight: Any = layer.weight
    return weight.shape[0] if isinstance(weight, QuantizedWeight) else weight.shape[axis]


__all__ = ["TILE", "Cutter", "HeadWeights", "Shard", "count_outputs", "splits_heads"]
