"""Run the original programs once: python make.py gptq|awq|gptqmodel|autoround [--clone DIR]

The tests compare planish with what is stored here and need none of the programs. Where they come
from (no GPU is needed; Python 3.11, torch 2.13.0, transformers 5.24.0):

    gptq       git clone https://github.com/IST-DASLab/gptq          --clone gptq
    awq        git clone https://github.com/mit-han-lab/llm-awq      --clone llm-awq
    gptqmodel  BUILD_CUDA_EXT=0 pip install --no-build-isolation gptqmodel
    autoround  pip install auto-round

Each program is run by itself, because their requirements differ. README.md says what is stored.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import subjects
import torch

HERE = Path(__file__).parent
MODEL = HERE / "llama"
SEEDS = (0, 1, 2)
ITERATIONS = 200


def commit(clone: Path) -> str:
    command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def made_by(program: str, clone: Path | None = None) -> np.ndarray:
    """The versions of a program (or the commit of its clone) and of what it runs on."""
    names = ["torch", "transformers"] + ([] if clone else [program])
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return np.array(", ".join(([f"{program} {commit(clone)}"] if clone else []) + versions))


def save(name: str, stored: measure.Stored, settings: dict[str, Any]) -> None:
    file = HERE / f"{name}.npz"
    np.savez_compressed(file, settings=np.array(json.dumps(settings)), **stored)
    print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")


def make_gptq(clone: Path) -> None:
    """Single linears."""
    import originals_gptq as gptq

    modules = gptq.import_gptq(clone)
    settings = dict(gptq.settings())
    for name, layer in subjects.layers().items():
        stored = gptq.record_layer(modules, layer) | {"made_by": made_by("gptq", clone)}
        save(f"gptq-{name}", stored, {"percdamp": gptq.DAMPING, **settings})


def measured(result: measure.Result) -> measure.Stored:
    """The errors of a whole model with the program's weights."""
    whole, changed = (subjects.load_model(MODEL) for _ in range(2))
    measure.insert(changed, result)
    return measure.errors(whole, changed, *subjects.token_ids())


def save_model(
    name: str, result: measure.Result, origin: np.ndarray, settings: dict[str, Any], **more: Any
) -> None:
    """A whole model's codes and errors, with the ids that it was calibrated and measured on."""
    calibration, held_out = (ids.astype(np.uint8) for ids in subjects.token_ids())
    stored = {"made_by": origin, "calibration": calibration, "held_out": held_out}
    found = measured(result)
    print(name, {key: np.round(value, 5).tolist() for key, value in found.items()})
    save(name, stored | measure.to_stored(result) | found | more, settings)


def make_awq(clone: Path) -> None:
    import originals_awq as awq

    program = awq.import_awq(clone)
    for clip in (True, False):
        model, ids = subjects.load_model(MODEL), subjects.token_ids()[0]
        result = awq.quantize_model(program, model, ids, clip)
        settings = {"w_bit": 4, "clip": clip, **awq.CONFIG}
        name = "awq-asym" if clip else "awq-asym-no-clip"
        save_model(name, result, made_by("llm-awq", clone), settings)


def make_gptqmodel(_: Path | None) -> None:
    import originals_gptqmodel as gptqmodel

    for name, sym in (("sym", True), ("asym", False)):
        settings = {"sym": sym, "desc_act": False}
        result = gptqmodel.quantize_model(MODEL, subjects.token_ids()[0], **settings)
        given = {"group_size": 32, "damp_percent": 0.01, "act_group_aware": False, **settings}
        save_model(f"gptqmodel-{name}", result, made_by("gptqmodel"), given)


def make_autoround(_: Path | None) -> None:
    """Codes of the first seed, errors of all as seed_block_error [S, L] and seed_kl [S]."""
    import originals_autoround as autoround

    for name, sym in (("sym", True), ("asym", False)):
        results = []
        for seed in SEEDS:
            model, ids = subjects.load_model(MODEL), subjects.token_ids()[0]
            given = {"sym": sym, "iters": ITERATIONS, "seed": seed}
            results.append(autoround.quantize_model(model, subjects.tokenizer(), ids, **given))
        found = [measured(result) for result in results]
        each = {f"seed_{key}": np.stack([f[key] for f in found]) for key in found[0]}
        settings = {"group_size": 32, "sym": sym, "iters": ITERATIONS, "seeds": SEEDS}
        save_model(f"autoround-{name}", results[0], made_by("auto-round"), settings, **each)


PROGRAMS: dict[str, Callable[[Any], None]] = {
    "gptq": make_gptq,
    "awq": make_awq,
    "gptqmodel": make_gptqmodel,
    "autoround": make_autoround,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--clone", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not MODEL.exists():
        subjects.write_model(MODEL)
    PROGRAMS[given.program](given.clone)


if __name__ == "__main__":
    main()
