"""Programs compiled ahead of time, each identified by its name and its arguments' shapes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from planish.fast.model.backend import Backend
from planish.fast.model.transformer import program
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Weights

Shapes = tuple[tuple[int, ...], ...]  # of one argument's arrays
Form = tuple[Shapes, Any]  # and the structure that they are in, with what is fixed in it
Key = tuple[str, tuple[tuple[str, Form], ...]]  # a program's name; its arguments, by name


@dataclass(frozen=True, kw_only=True)
class Program:
    """One compiled program."""

    name: str
    shapes: dict[str, Shapes]
    seconds: float  # to compile it
    call: Callable[..., Any]

    def __str__(self) -> str:
        sizes = (f"{name} {describe(shapes)}" for name, shapes in self.shapes.items())
        return f"{self.name}: {', '.join(sizes)}; compiled in {self.seconds:.2f} s"


class Programs:
    """The programs of one model, which share its config, weights and backend."""

    def __init__(self, config: ModelConfig, weights: Weights, backend: Backend):
        self._static = {"config": config, "backend": backend}
        self._leaves, self._structure = jax.tree.flatten(weights)
        self._flat: dict[Any, Any] = {}  # the model's programs, of the leaves
        self._known: dict[Key, Program] = {}

    def run_model(self, function: Any, **arguments: Any) -> Any:
        """Run one of model/transformer.py's programs; its other arguments are given by name."""
        if function not in self._flat:
            self._flat[function] = of_leaves(function, self._structure)
        return self._run(self._flat[function], self._static, {"weights": self._leaves}, arguments)

    def run(self, function: Any, **arguments: Any) -> Any:
        """Run a jitted function that does not take the model."""
        return self._run(function, {}, {}, arguments)

    def run_here(self, function: Any, **arguments: Any) -> Any:
        """The same on this process's own device only, where there are several."""
        return self.run(function, **arguments)

    def prepare(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments as a program takes them."""
        return arguments

    def compile(
        self, function: Any, static: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """Compile a jitted function for the shapes of the arguments given."""
        program: Callable[..., Any] = function.lower(**static, **given).compile()
        return program

    def known(self) -> tuple[Program, ...]:
        """The programs compiled so far, in order."""
        return tuple(self._known.values())

    @property
    def seconds(self) -> float:
        """The time that compiling has taken so far."""
        return sum(program.seconds for program in self.known())

    def _run(
        self,
        function: Any,
        static: Mapping[str, Any],
        fixed: Mapping[str, Any],
        arguments: Mapping[str, Any],
    ) -> Any:
        """Call a compiled program, compiling it if its shapes are new. `fixed` never changes."""
        arguments = self.prepare(arguments)
        forms = {name: form_of(argument) for name, argument in arguments.items()}
        key = function.__name__, tuple(forms.items())
        if key not in self._known:
            start = time.perf_counter()
            call = self.compile(function, static, {**fixed, **arguments})
            seconds = time.perf_counter() - start
            shapes = {name: form[0] for name, form in forms.items()}
            self._known[key] = Program(
                name=function.__name__, shapes=shapes, seconds=seconds, call=call
            )
        return self._known[key].call(**fixed, **arguments)


def of_leaves(function: Any, structure: Any) -> Any:
    """One of model/transformer.py's programs that takes the weights as a list of arrays.

    A call takes apart its arguments, which for the weights' two thousand nodes (1.1B) takes 0.3 ms
    more than for their arrays.
    """

    @functools.wraps(function.__wrapped__)
    def run(weights: list[jax.Array], **arguments: Any) -> Any:
        return function.__wrapped__(weights=jax.tree.unflatten(structure, weights), **arguments)

    return program(run)


def form_of(argument: Any) -> Form:
    """The shapes of an argument's arrays, and its structure."""
    leaves, structure = jax.tree.flatten(argument)
    return tuple(leaf.shape for leaf in leaves), structure


def describe(shapes: Shapes) -> str:
    """The shape, such as [1, 512]; for several arrays, their number and the largest shape."""
    largest = max(shapes, key=lambda shape: (len(shape), shape), default=())
    several = f"{len(shapes)} of at most " if len(shapes) > 1 else ""
    return f"{several}{list(largest)}"
