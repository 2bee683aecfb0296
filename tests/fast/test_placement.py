"""The engine computes on the CPU, compiled, with any settings of jax in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import planish
from planish.fast import placement as device
from planish.fast.session.engine import Engine
from planish.reference.errors import PlanishError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cuda",
    "JAX_PLATFORM_NAME": "gpu",
    "JAX_DISABLE_JIT": "1",
    "JAX_ENABLE_X64": "1",
    "JAX_NO_TRACING": "1",
    "JAX_TRANSFER_GUARD": "disallow",
}


def test_the_command_claims_jax_from_a_hostile_environment(tiny_llama):
    words = ["--model", str(tiny_llama), "--prompt", "Ab", "--max_new_tokens", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "planish", "generate", *words, "--kernels", "xla"],
        env=os.environ | ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("fast: load ") and done.stderr.count("\n") == 1


def test_an_engine_keeps_to_the_cpu_whatever_the_default_device_is(tiny_llama):
    with jax.disable_jit(), jax.default_device("tpu"):  # jax has none: asking it would raise
        engine = Engine(open_checkpoint(tiny_llama))
        assert len(engine.forward([1, 2, 3])) == 3
        stop, prompts = Stop(2, ignore_eos=True), [[1, 2], [3]]
        assert len(list(engine.generate(prompts, stop, Sampling()))) == 4
    assert {leaf.device for leaf in jax.tree.leaves(engine.weights)} == {jax.devices("cpu")[0]}


def test_a_jax_without_its_cpu_is_one_line(monkeypatch):
    def refuse(backend):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(PlanishError, match="Unknown backend cpu.*found JAX_PLATFORMS=cuda"):
        device.on_cpu(print)()


def test_opening_and_running_a_model_changes_no_setting_of_jax(tiny_llama):
    before = dict(jax.config.values)
    model = planish.load(tiny_llama, kernels="xla")
    assert isinstance(model.generate("Ab", max_new_tokens=2, ignore_eos=True), str)
    assert dict(jax.config.values) == before


def test_an_aligned_array_is_aliased(tmp_path):
    memory = np.zeros(4096 + 16, np.float32)
    start = (-memory.ctypes.data % 64) // 4
    aligned = memory[start : start + 4096]
    assert device.put(aligned).unsafe_buffer_pointer() == aligned.ctypes.data
