"""A model's layers on several processes, one stage after the other: pipeline parallelism.

    stage 0          embeddings, its layers   -> hidden states
    another stage    its layers               -> hidden states
    the last stage   its layers, final norm, lm_head, sampling -> the result, sent to all stages

Each stage runs its own programs on its own device, or mesh of devices; no sum changes, so the
results have one process's bits. A process holds the weights and the cache of its layers only. All
stages are asked for the same programs in the same order. The result of one is a Pending except on
the last stage, so stage 0 computes the next chunk of a prompt while stage 1 has this one. Source of
the idea: GPipe, arXiv 1811.06965, whose micro-batches are the chunks.

B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import jax
import numpy as np

from planish.fast.model import transformer as model
from planish.fast.model.backend import Backend, Draw, Positions
from planish.fast.model.cache import KVCache
from planish.fast.parallel.streams import Column
from planish.fast.placement import give
from planish.fast.session.placing import Placement
from planish.fast.session.programs import Program, Programs
from planish.reference.errors import PlanishError
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Weights

FIRST = ("embed", "positions", "project_in", "embed_norm")  # what only the first stage has
LAST = ("final_norm", "project_out", "head")


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each stage: equally many; earlier ones have one more, as the last has lm_head.

    Raises PlanishError if there are more stages than layers.
    """
    if stages > layers:
        expected = f"at most {layers}, the model's layers"
        raise PlanishError("bad value", name="--parallel pipeline", expected=expected, found=stages)
    sizes = [layers // stages + (stage < layers % stages) for stage in range(stages)]
    ends = [sum(sizes[: stage + 1]) for stage in range(stages)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


class SomeBlocks(Sequence[Block]):
    """Some blocks of a model, each read when it is indexed."""

    def __init__(self, blocks: Sequence[Block], layers: range):
        self.blocks, self.layers = blocks, layers

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        if isinstance(index, int):
            return self.blocks[self.layers[index]]
        return [self.blocks[layer] for layer in self.layers[index]]


@dataclass(frozen=True)
class Stage:
    """One stage of every model that is opened: a Placement. inner: where its arrays go."""

    inner: Placement
    column: Column
    results: Results

    def own_layers(self, config: ModelConfig) -> ModelConfig:
        """The model with this stage's layers."""
        layers = self._layers(config)
        return replace(config, layers=config.layers[layers.start : layers.stop])

    def backend(self, config: ModelConfig, inner: Backend) -> Backend:
        return self.inner.backend(config, inner)

    def weights(self, config: ModelConfig, weights: Weights, backend: Backend) -> Weights:
        """Those of this stage; what belongs to another one is None."""
        none: dict[str, Any] = {} if self.column.is_first else dict.fromkeys(FIRST)
        none |= {} if self.column.is_last else dict.fromkeys(LAST)
        own = replace(weights, blocks=SomeBlocks(weights.blocks, self._layers(config)), **none)
        return self.inner.weights(config, own, backend)

    def programs(self, config: ModelConfig, weights: Weights, backend: Backend) -> Programs:
        return StagePrograms(self.inner.programs(config, weights, backend), self)

    def cache(self, config: ModelConfig, cache: KVCache) -> KVCache:
        return self.inner.cache(config, cache)

    def _layers(self, config: ModelConfig) -> range:
        """The layers of this stage, of a model's."""
        return stage_layers(config.num_layers, self.column.stages)[self.column.stage]


class Results:
    """What the last stage sends. Results come in order, and one that nobody reads is dropped."""

    def __init__(self, column: Column):
        self.column, self._count = column, 0

    def share(self, found: Any) -> Any:
        """The last stage's result on every stage: itself there, a Pending elsewhere."""
        self._count += 1
        if not self.column.is_last:
            return Pending(self, self._count)
        for stream in self.column.others():
            stream.send("result", {"result": np.asarray(found)}, number=self._count)
        return found

    def read(self, number: int) -> np.ndarray:
        """The result of this number."""
        stream = self.column.at(self.column.stages - 1)
        while (message := stream.expect("result")).facts["number"] < number:
            continue
        return message.arrays["result"]


class Pending:
    """A result that the last stage has yet to send: np.asarray waits for it."""

    def __init__(self, results: Results, number: int):
        self._results, self._number = results, number
        self._found: np.ndarray | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._found is None:
            self._found = self._results.read(self._number)
        return np.array(self._found, dtype=dtype, copy=copy)


class StagePrograms(Programs):
    """The programs of one stage; what run_model gives is of the whole model."""

    def __init__(self, inner: Programs, stage: Stage):
        self.inner, self.column, self.results = inner, stage.column, stage.results

    def run_model(self, function: Any, **arguments: Any) -> Any:
        """This stage's part of one of model/transformer.py's programs: a result and the cache."""
        if function is model.decode_tokens:
            return self._decode_tokens(**arguments)
        found, cache = self._pass(function, arguments)
        return self.results.share(found), cache

    def run(self, function: Any, **arguments: Any) -> Any:
        return self.inner.run(function, **arguments)

    def run_here(self, function: Any, **arguments: Any) -> Any:
        return self.inner.run_here(function, **arguments)

    def known(self) -> tuple[Program, ...]:
        return self.inner.known()

    def _pass(self, function: Any, arguments: Mapping[str, Any]) -> tuple[Any, KVCache]:
        """Take hidden states from the stage before; the last stage's result, or the hidden states
        for the next, which are what a model without lm_head gives."""
        given = dict(arguments)
        if not self.column.is_first:
            before = self.column.at(self.column.stage - 1)
            given["tokens"] = give(before.expect("hidden").arrays["x"])
        if not self.column.is_last:
            by_one = function in (model.decode_step, decode_sample)
            function = model.decode_step if by_one else model.forward
            given = {name: given[name] for name in ("tokens", "cache", "positions")}
        found, cache = self.inner.run_model(function, **given)
        if not self.column.is_last:
            after = self.column.at(self.column.stage + 1)
            after.send("hidden", {"x": np.asarray(found)})
        return found, cache

    def _decode_tokens(
        self, tokens: jax.Array, cache: KVCache, positions: Positions, draw: Draw
    ) -> tuple[np.ndarray, KVCache]:
        """model.decode_tokens, token by token, as the next one begins in the first stage."""
        last, index = positions.slots(cache) - 1, np.asarray(positions.index)
        uniform, ends = np.asarray(draw.uniform), np.asarray(draw.ends)
        found = np.full((len(uniform), len(index)), -1, np.int32)
        rows = positions.rows
        ended = np.zeros(len(index), bool) if rows is None else np.asarray(rows) < 0
        for step in range(int(draw.count)):
            if ended.all():
                break
            where = replace(positions, index=give(index))
            given: dict[str, Any] = {"tokens": tokens, "cache": cache, "positions": where}
            given["draw"] = replace(draw, uniform=give(uniform[step : step + 1]))
            sampled, cache = self._pass(decode_sample, given)
            found[step] = np.asarray(self.results.share(sampled))
            tokens = give(found[step])
            ended = ended | (found[step][:, None] == ends).any(axis=1)
            index = np.minimum(index + 1, last).astype(np.int32)
        return found, cache


@model.program
def decode_sample(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
    draw: Draw,
) -> tuple[jax.Array, KVCache]:
    """The last stage of model.decode_tokens: the next token of every row, sampled, int32 [B]."""
    logits, cache = model.extend_by_one(config, weights, tokens, cache, positions, backend)
    return backend.sample(logits, draw.sampling, draw.uniform[0]), cache
