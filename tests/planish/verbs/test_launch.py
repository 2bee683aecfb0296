"""planish launch: the bytes of one process, one line when a process ends, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.models import make_llama
from tests.processes import is_running

TEXT = ("--prompt", "Ab", "--max_new_tokens", "9", "--ignore_eos")
ENDLESS = ("--prompt", "Ab", "--max_new_tokens", "32000", "--ignore_eos", "--temperature", "1")
SEED = ("--seed", "3", "--min_p", "0.001")  # which the host samples, token by token


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model whose text does not end before a busy machine lets the test go on."""
    root = tmp_path_factory.mktemp("endless")
    return make_llama(root, num_hidden_layers=1, max_position_embeddings=32768)


def start(model, *words):
    """planish launch --processes 2 -- generate, in a process group of its own."""
    command = [sys.executable, "-m", "planish", "launch", "--processes", "2", "--", "generate"]
    return subprocess.Popen(
        [*command, "--model", str(model), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(launch):
    """The processes that it has started, in order."""
    tasks = Path(f"/proc/{launch.pid}/task").glob("*/children")
    return sorted(int(word) for task in tasks for word in task.read_text().split())


@pytest.mark.whole
def test_two_processes_print_what_one_prints(one_layer, shell):
    alone = shell("generate", "--model", one_layer, *TEXT)
    both = shell("launch", "--processes", 2, "--", "generate", "--model", one_layer, *TEXT)
    assert (both.code, both.out) == (0, alone.out)
    assert both.err.startswith("fast: load ") and both.err.count("\n") == 1


@pytest.mark.whole
@pytest.mark.parametrize(
    ("count", "cut"), [(2, "pipeline=2"), (4, "tensor=2,pipeline=2"), (2, "tensor=2")]
)
def test_stages_and_parts_print_what_one_process_prints(tiny_llama, shell, count, cut):
    words = ("generate", "--model", tiny_llama, *TEXT)
    alone = shell(*words)
    several = shell("launch", "--processes", count, "--", *words, "--parallel", cut)
    assert (several.code, several.out) == (0, alone.out)


@pytest.mark.whole
@pytest.mark.parametrize("cut", ["tensor=2", "pipeline=2"])
def test_bench_names_its_processes(tiny_llama, shell, cut):
    words = ("bench", "--model", tiny_llama, "--tests", "pp16,tg4", "--runs", 1, "--json")
    found = shell("launch", "--processes", 2, "--", *words, "--parallel", cut).only_json()
    assert [(row["processes"], row["mode"]) for row in found["rows"]] == [
        (2, f"2 processes, {cut}")
    ] * 2


@pytest.mark.parametrize("words", [("--serve",), ("--peers", "torch")])
def test_bench_refuses_what_one_process_measures(planish, tiny_llama, words):
    flags = ("--parallel", "tensor=2", "--model", tiny_llama, *words)
    assert planish("bench", *flags).refused(words[0], "is not for --parallel")


@pytest.mark.whole
@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGSEGV), (0, signal.SIGKILL)])
def test_a_process_that_dies_ends_all_and_is_named(endless, victim, number):
    launch = start(endless, *ENDLESS, *SEED)
    assert launch.stdout.read(1)  # both compute
    pids = children(launch)
    os.kill(pids[victim], number)
    _, errors = launch.communicate(timeout=60)
    assert errors == f"error: process {victim} of 2 was ended by {number.name}\n"
    assert launch.returncode == 128 + number
    assert not any(map(is_running, pids))


@pytest.mark.whole
def test_ctrl_c_ends_all(endless):
    launch = start(endless, *ENDLESS, *SEED)
    assert launch.stdout.read(1)
    pids = children(launch)
    launch.send_signal(signal.SIGINT)
    _, errors = launch.communicate(timeout=60)
    assert (launch.returncode, errors) == (130, "interrupted\n")
    assert not any(map(is_running, pids))


@pytest.mark.whole
def test_nothing_is_left_if_launch_itself_is_killed(endless):
    launch = start(endless, *ENDLESS, *SEED)
    assert launch.stdout.read(1)
    pids = children(launch)
    launch.kill()
    launch.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(map(is_running, pids))


def test_bad_input_is_one_line(shell):
    words = ("launch", "--processes", 2, "--", "generate", "--model", "/nowhere", *TEXT)
    assert shell(*words).refused("/nowhere")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), "generate, perplexity, logits, serve, bench"),
        (("--", "quantize"), "found quantize"),
        (("generate", "--model", "DIR"), "come after --, as -- VERB"),
        (("--", "generate", "--parallel", "pipeline=3"), "expected --processes 3, or for 2"),
        (("--", "generate", "--parallel=2"), "expected tensor=T, pipeline=P or"),
        (("--processes", "0", "--", "generate"), "expected 1..256, found 0"),
        (("--processes", "1000", "--", "generate"), "expected 1..256, found 1000"),
    ],
)
def test_what_cannot_be_launched_is_refused(planish, words, found):
    assert planish("launch", "--processes", "2", *words).refused(found)


def test_more_processes_than_memory_holds_are_refused(planish, monkeypatch):
    monkeypatch.setattr("planish.verbs.launch.free_memory", lambda: 5 * 2**28)
    words = ("--processes", "200", "--", "generate")
    assert planish("launch", *words).refused("expected at most 5, as each takes 256 MiB")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--parallel", "2"), "expected tensor=T, pipeline=P or tensor=T,pipeline=P"),
        (("--parallel", "tensor=2"), "needs other processes"),
        (("--parallel", "tensor=2", "--engine", "reference"), "is for --engine fast"),
        (("--process_id", "1"), "needs --parallel"),
        (("--parallel", "tensor=2", "--coordinator", "x"), "expected HOST:PORT, found x"),
        (
            ("--parallel", "tensor=2", "--coordinator", "x:1", "--num_processes", "2"),
            "--process_id: is missing",
        ),
        (
            ("--parallel=tensor=2", "--coordinator=x:1", "--num_processes=3", "--process_id=1"),
            "expected tensor x pipeline = 3, as there are 3 processes, found tensor=2",
        ),
        (
            ("--parallel=pipeline=2", "--coordinator=x:1", "--num_processes=2", "--process_id=1"),
            "--parallel pipeline: bad value; expected at most 1, the model's layers, found 2",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(planish, one_layer, words, found, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "SLURM_PROCID", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert planish("generate", "--model", one_layer, *TEXT, *words).refused(found)
