"""Programs that run on every device of a mesh, each on its parts of the arrays.

An array's PartitionSpec says which part a device gets, so a program needs no table of them: what
goes in as a part comes out as one. Results that are not caches are whole on each device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

from planish.fast.session.programs import Program, Programs

CACHES = ("cache", "layer")  # arguments whose form the results have
DONATED = "cache"


class MeshPrograms(Programs):
    """The programs of one model on a mesh (mesh.TensorMesh)."""

    def __init__(self, config: Any, weights: Any, backend: Any, mesh: Any):
        super().__init__(config, weights, backend)
        self.placement, self._here = mesh, Programs(config, weights, backend)

    def run_here(self, function: Any, **arguments: Any) -> Any:
        return self._here.run(function, **arguments)

    def known(self) -> tuple[Program, ...]:
        return (*super().known(), *self._here.known())

    def prepare(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Every array on every device."""
        return {name: jax.tree.map(self.placement.replicate, x) for name, x in arguments.items()}

    def compile(
        self, function: Any, static: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """Compile a jitted function for the mesh."""
        specs = {name: jax.tree.map(lambda x: x.sharding.spec, x) for name, x in given.items()}
        kept = {name: spec for name, spec in specs.items() if name != DONATED}
        donated = {name: spec for name, spec in specs.items() if name == DONATED}
        cache = next(specs[name] for name in CACHES if name in specs)
        results = (PartitionSpec(), cache) if static else cache

        def run(kept: dict[str, Any], donated: dict[str, Any]) -> Any:
            return function.__wrapped__(**static, **kept, **donated)

        run.__name__ = function.__name__
        mesh = self.placement.mesh
        whole = jax.shard_map(
            run, mesh=mesh, in_specs=(kept, donated), out_specs=results, check_vma=False
        )

        def sort(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
            return {n: arguments[n] for n in kept}, {n: arguments[n] for n in donated}

        program = jax.jit(whole, donate_argnums=(1,)).lower(*sort(given)).compile()
        return lambda **arguments: program(*sort(arguments))
