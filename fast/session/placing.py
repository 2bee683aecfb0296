"""What an engine asks of the devices that it runs on, and the usual one: this process's CPU.

fast/parallel/mesh.py has another.
"""

from __future__ import annotations

from typing import Any, Protocol

from planish.fast.model.backend import Backend
from planish.fast.model.cache import KVCache
from planish.fast.model.weights import device_weights
from planish.fast.session.programs import Programs
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Weights


class Placement(Protocol):
    """What an engine asks of the devices that it runs on."""

    def own_layers(self, config: ModelConfig, /) -> ModelConfig:
        """The layers of a model that run here."""

    def backend(self, config: ModelConfig, inner: Backend, /) -> Backend:
        """The backend that the model's programs call."""

    def weights(self, config: ModelConfig, weights: Weights, backend: Backend, /) -> Weights:
        """The weights in the layout that runs, on the devices."""

    def programs(self, config: ModelConfig, weights: Weights, backend: Backend, /) -> Programs:
        """What compiles and runs the model's programs."""

    def cache(self, config: ModelConfig, cache: KVCache, /) -> KVCache:
        """An empty cache, made by the backend for one device, on the devices."""


def computing(backend: Any) -> Any:
    """The backend that computes, without one that cuts its linears (fast/parallel/backend.py)."""
    return getattr(backend, "inner", backend)


class OneDevice:
    """The CPU of this process."""

    def own_layers(self, config: ModelConfig) -> ModelConfig:
        return config

    def backend(self, _: ModelConfig, inner: Backend) -> Backend:
        return inner

    def weights(self, _: ModelConfig, weights: Weights, __: Backend) -> Weights:
        return device_weights(weights)

    def programs(self, config: ModelConfig, weights: Weights, backend: Backend) -> Programs:
        return Programs(config, weights, backend)

    def cache(self, _: ModelConfig, cache: KVCache) -> KVCache:
        return cache
