"""A mesh of devices computes one device's numbers, bit for bit: logits, losses and greedy text.

agree.py compares: on several devices of one process, or in several processes over loopback.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from planish.fast.parallel.group import free_port

GOLDEN = Path(__file__).parents[2] / "golden"
GOLDENS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))
SCRIPT = Path(__file__).with_name("agree.py")
RECIPES = ("W8A8", "W4A8")


def agree(parts, processes, cases, kernels_directory, stages=1):
    """Run agree.py; its last line."""
    environ = os.environ | {"PLANISH_TEST_KERNELS": str(kernels_directory)}
    command = [sys.executable, str(SCRIPT), "--parts", str(parts), "--stages", str(stages)]
    if processes > 1:
        command += ["--port", str(free_port("127.0.0.1"))]
    running = [
        subprocess.Popen(
            [*command, "--process", str(index), *cases],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]
    printed = [process.communicate(timeout=900)[0] for process in running]
    assert all(process.returncode == 0 for process in running), printed
    lines = {text.strip().splitlines()[-1] for text in printed}
    assert len(lines) == 1
    return lines.pop()


@pytest.mark.whole
def test_several_devices_of_one_process_agree_with_one(one_layer, kernels, kernels_directory):
    cases = [f"native:W4A8:{one_layer}", f"xla:W8A8:{one_layer}"]
    assert agree(2, 1, cases, kernels_directory) == "agree: 2 of 2"


@pytest.mark.whole(4)
@pytest.mark.parametrize("form", ["native", "xla"])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_every_form_agrees(one_layer, form, parts, kernels, kernels_directory):
    recipes = (*RECIPES, "W8A16", "W4A16") if form == "native" else RECIPES
    cases = [f"{form}:{name}:{one_layer}" for name in recipes]
    assert agree(parts, 1, cases, kernels_directory) == f"agree: {len(cases)} of {len(cases)}"


@pytest.mark.whole(27)
@pytest.mark.parametrize("name", GOLDENS)
def test_every_architecture_on_two_devices(name, kernels, kernels_directory):
    cases = [f"native:{chosen}:{GOLDEN / name}" for chosen in RECIPES]
    assert agree(2, 1, cases, kernels_directory) == "agree: 2 of 2"


@pytest.mark.whole(51)
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", GOLDENS)
def test_every_architecture_on_processes(name, processes, kernels, kernels_directory):
    cases = [f"native:{chosen}:{GOLDEN / name}" for chosen in RECIPES]
    assert agree(processes, processes, cases, kernels_directory) == "agree: 2 of 2"


@pytest.mark.whole(3)
@pytest.mark.parametrize("name", ["gemma3_text-two-bases", "llama-tied-grouped", "mpt-alibi"])
def test_stages_of_two_processes_each(name, kernels, kernels_directory):
    cases = [f"native:{chosen}:{GOLDEN / name}" for chosen in RECIPES]
    assert agree(2, 4, cases, kernels_directory, stages=2) == "agree: 2 of 2"
