"""Whether a mesh of devices gives one device's bits: run by the tests, on each of the processes.

python agree.py --parts 2 [--stages S] [--port P --process I] CASE ...

--parts devices of this process, or, with --port, of as many processes for each of S stages. A CASE
is form:recipe:directory.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

NEW_TOKENS = 5
PROMPTS = ([5, 3, 9, 40, 17, 2, 60], [7, 7, 1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--port", type=int)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()
    if args.port is None:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.parts}"
    from planish.process import claim_jax, use_compilation_cache

    claim_jax()
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    use_compilation_cache(Path(kept) if kept else None)
    placement = connect(args)
    failed = []
    for case in args.cases:
        if agrees(case, placement):
            print(f"agrees: {case}", flush=True)
        else:
            failed.append(case)
            print(f"differs: {case}", flush=True)
    print(f"agree: {len(args.cases) - len(failed)} of {len(args.cases)}", flush=True)
    sys.stdout.flush()
    os._exit(len(failed) > 0)


def connect(args: argparse.Namespace) -> Any:
    """Join the other processes of the test, if there are any: the placement that is tested."""
    from planish.fast.parallel.connecting import connect_mesh, connect_stages
    from planish.fast.parallel.group import Member, join_group
    from planish.fast.parallel.mesh import TensorMesh

    if args.port is None:
        return TensorMesh(args.parts)
    processes = args.parts * args.stages
    group = join_group(Member("127.0.0.1", args.port, processes, args.process))
    if args.stages == 1:
        return connect_mesh(group)["placement"]
    return connect_stages(group, args.stages, args.parts)[1]["placement"]


def agrees(case: str, placement: Any) -> bool:
    """Logits, losses and greedy tokens of a placement and of one device, bit for bit."""
    from planish.fast.session.engine import Engine
    from planish.fast.session.placing import OneDevice

    form, name, directory = case.split(":", 2)
    native = form == "native" and load_kernels()
    with tempfile.TemporaryDirectory() as made:
        checkpoint = quantized(Path(directory), name, Path(made))
        one, several = (Engine(checkpoint, native, placement=p) for p in (OneDevice(), placement))
        found = [results(engine) for engine in (one, several)]
    same = all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    return bool(same and np.isfinite(found[0][0]).all())


def load_kernels() -> bool:
    from planish.fast.native.library import choose_kernels

    return choose_kernels("native", Path(os.environ["PLANISH_TEST_KERNELS"]))


def quantized(directory: Path, name: str, made: Path) -> Any:
    """The checkpoint, quantized by a recipe unless its name is `stored`."""
    from planish.reference.errors import RecipeError
    from planish.reference.files.load import open_checkpoint
    from planish.reference.quantize.recipe import recipe

    if name == "stored":
        return open_checkpoint(directory)
    options: dict[str, Any] = {"group_size": 32} if name.startswith("W4") else {}
    samples = [np.array(PROMPTS[0] * 3), np.array(PROMPTS[1] * 7)]
    checkpoint = open_checkpoint(directory)
    try:
        write(checkpoint, made / "model", recipe(name, **options), samples)
    except RecipeError:  # norms that cannot be smoothed
        write(checkpoint, made / "model", recipe("naive"), samples)
    return open_checkpoint(made / "model")


def write(checkpoint: Any, path: Path, chosen: Any, samples: list[np.ndarray]) -> None:
    """Quantize a checkpoint into a directory."""
    from planish.reference.files.writer import CheckpointWriter
    from planish.reference.quantize.checkpoint import quantize_checkpoint

    with CheckpointWriter(path, checkpoint.path) as writer:
        quantize_checkpoint(checkpoint, writer, chosen, samples)


def results(engine: Any) -> list[np.ndarray]:
    """What is compared."""
    from planish.reference.text.generate import Stop
    from planish.reference.text.sampling import Sampling

    stop = Stop(NEW_TOKENS, ignore_eos=True)
    tokens = list(engine.generate(PROMPTS, stop, Sampling()))
    return [engine.forward(PROMPTS[0]), engine.losses(PROMPTS[0]), np.array(tokens)]


if __name__ == "__main__":
    main()
