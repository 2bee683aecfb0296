"""A mesh of devices with the axis `tensor`, and where each array goes.

    on a mesh                       PartitionSpec
    a Shard's arrays                tensor            the parts of all devices along the first axis
    norms of single heads           tensor            [heads, Hd]
    slots of the cache              -, tensor         [B, heads, ...], or whole on each device
    everything else                 -                 whole on each device

A process builds only the parts of its own devices, so it reads only their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from planish.fast.model.backend import Backend
from planish.fast.model.cache import KVCache
from planish.fast.parallel.backend import AXIS, wrap_backend
from planish.fast.parallel.programs import MeshPrograms
from planish.fast.parallel.shards import Cutter, HeadWeights, Shard, splits_heads
from planish.fast.session.programs import Programs
from planish.reference.errors import PlanishError
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Weights

WHOLE, PART, HEADS = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)


class TensorMesh:
    """`parts` devices, of this process or of several with one device each."""

    def __init__(self, parts: int):
        devices = jax.devices("cpu")
        if len(devices) != parts:
            expected = f"{len(devices)}, a shard for each process"
            raise PlanishError(
                "bad value", name="--parallel tensor", expected=expected, found=parts
            )
        self.mesh = Mesh(np.array(devices), (AXIS,))
        self.own = [(i, device) for i, device in enumerate(devices) if is_own(device)]

    @property
    def parts(self) -> int:
        return int(self.mesh.size)

    def own_layers(self, config: ModelConfig) -> ModelConfig:
        return config

    def backend(self, config: ModelConfig, inner: Backend) -> Backend:
        return wrap_backend(inner, config, self.parts)

    def weights(self, config: ModelConfig, weights: Weights, backend: Backend) -> Weights:
        """Block by block, the parts of this process's devices."""
        exact = getattr(backend, "sums_floats_by_row", False)
        cutters = [Cutter(config, index, self.parts, exact) for index, _ in self.own]
        outer = self.place([cutter.outer(weights) for cutter in cutters])

        def blocks() -> Iterator[Block]:
            for block in weights.blocks:
                yield self.place([cutter.block(block) for cutter in cutters])

        return replace(outer, blocks=tuple(blocks()))

    def programs(self, config: ModelConfig, weights: Weights, backend: Backend) -> Programs:
        return MeshPrograms(config, weights, backend, self)

    def cache(self, config: ModelConfig, cache: KVCache) -> KVCache:
        """Each array in a separate buffer, as it is donated."""
        spec = HEADS if splits_heads(config, self.parts) else WHOLE

        def spread(array: jax.Array) -> jax.Array:
            others = [np.zeros(array.shape, array.dtype) for _ in self.own[1:]]
            return self.join([array, *others], spec)

        return jax.tree.map(spread, cache)

    def place(self, trees: Sequence[Any]) -> Any:
        """One tree of global arrays from the trees of this process's devices."""

        def place_node(node: Any, *others: Any) -> Any:
            if isinstance(node, Shard):
                return jax.tree.map(lambda *arrays: self.stack(arrays), node, *others)
            if isinstance(node, HeadWeights):
                return self.cut(node.weight)
            return self.replicate(node)

        def is_node(node: Any) -> bool:
            return isinstance(node, Shard | HeadWeights)

        return jax.tree.map(place_node, *trees, is_leaf=is_node)

    def replicate(self, array: Any) -> jax.Array:
        """The same array on every device; itself if it is there."""
        if isinstance(array, jax.Array) and len(array.sharding.device_set) == self.parts > 1:
            return array
        return self.join([array for _ in self.own], WHOLE)

    def stack(self, parts: Sequence[Any]) -> jax.Array:
        """Parts of this process's devices, one after the other along the first axis."""
        return self.join(parts, PART)

    def cut(self, array: np.ndarray) -> jax.Array:
        """An array whose first axis is divided among the devices."""
        pieces = np.split(array, self.parts)
        return self.join([pieces[index] for index, _ in self.own], PART)

    def join(self, parts: Sequence[Any], spec: PartitionSpec) -> jax.Array:
        """A global array from the part of each of this process's devices; aliases aligned ones."""
        placed = [
            jax.device_put(part, device, may_alias=True)
            for part, (_, device) in zip(parts, self.own, strict=True)
        ]
        axes = [self.parts if axis == AXIS else 1 for axis in spec]
        axes += [1] * (placed[0].ndim - len(axes))
        shape = tuple(n * size for n, size in zip(axes, placed[0].shape, strict=True))
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def is_own(device: jax.Device) -> bool:
    """Whether a device belongs to this process."""
    return device.process_index == jax.process_index()
