"""What several processes add to a step: a gather, a hand-over between stages, a layer's overhead.

    python -m planish.compare.bench.gathers PORT PROCESSES PROCESS MODEL KERNELS

is one of the N processes that `planish plan --measure` starts. All of them, in turns,

    read       memory as fast as they can, all at the same time: `bandwidth` of each
    whole      decode, each by itself, all L layers of B bytes
    tensor     decode together, linears cut
    pipeline   decode together, layers cut

so that every time has what a step has: kernels, attention, dispatches, and processes that wait for
the slower one. From them follow the figures of planning.py, of one sequence and of MANY:

    overhead   (whole - B / bandwidth) / L
    gather     (tensor - L overhead - (whole - L overhead) / N) / (4 L + 1)
    handover   (pipeline - whole) / N
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from planish.compare.bench.machine import PeakRates
from planish.compare.bench.planning import FLOAT, GATHERS
from planish.compare.bench.roofline import count_token_bytes
from planish.compare.bench.timing import draw_prompts, time_decoding
from planish.fast.native.library import choose_kernels
from planish.fast.parallel.collectives import connect_group, first_value, shared_clock
from planish.fast.parallel.group import Member, join_group
from planish.fast.parallel.mesh import TensorMesh
from planish.fast.parallel.stages import Results, Stage
from planish.fast.parallel.streams import open_column, stream_clock
from planish.fast.session.engine import Engine
from planish.fast.session.placing import OneDevice
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.model.config import ModelConfig

TOKENS = 16  # of one measurement
ROUNDS = 5  # after one that compiles
MANY = 8  # sequences, for the cost of a gathered byte
MOST_NETWORK = 1e12  # bytes per second, where bytes cost nothing that can be measured

Figures = dict[str, float]


def measure_steps(engines: Mapping[str, Engine], mesh: TensorMesh, native: bool) -> Figures:
    """Bytes per second that a process reads, and seconds of a step in each way; MANY sequences as
    tensor_8. Medians of ROUNDS in turns."""
    peaks, found = PeakRates(native, ("memory_read_bytes_per_second",)), dict[str, list[float]]()
    ways = [(name, 1) for name in engines] + [(name, MANY) for name in ("whole", "tensor")]
    for number in range(ROUNDS + 1):
        first_value(mesh, 0)  # all begin together
        if number > 0:
            peaks.sample()
        for name, batch in ways:
            prompts = draw_prompts(engines[name].config, batch, 1)
            first_value(mesh, 0)
            seconds = time_decoding(engines[name], prompts, TOKENS) / TOKENS
            found.setdefault(name if batch == 1 else f"{name}_{batch}", []).append(seconds)
    steps = {name: statistics.median(times[1:]) for name, times in found.items()}
    return {"bandwidth": peaks.medians()["memory_read_bytes_per_second"], **steps}


def derive(found: Figures, checkpoint: Checkpoint, processes: int) -> Figures:
    """overhead, latency (of a gather), network (bytes per second) and handover as above; what noise
    has made negative is 0."""
    layers = checkpoint.config.num_layers
    read = count_token_bytes(checkpoint) / found["bandwidth"]
    overheads = max(found["whole"] - read, 0.0)

    def gather(tensor: float, whole: float) -> float:
        shared = (whole - overheads) / processes
        return max(tensor - overheads - shared, 0.0) / (GATHERS * layers + 1)

    one = gather(found["tensor"], found["whole"])
    many = gather(found[f"tensor_{MANY}"], found[f"whole_{MANY}"])
    moved = (MANY - 1) * mean_gathered(checkpoint.config) * (processes - 1) / processes
    return {
        "overhead": overheads / layers,
        "latency": one,
        "network": moved / max(many - one, moved / MOST_NETWORK),
        "handover": max(found["pipeline"] - found["whole"], 0.0) / processes,
    }


def mean_gathered(config: ModelConfig) -> float:
    """Bytes of what a gather of one sequence gives, on average."""
    of_a_layer = config.num_heads * config.head_dim + 2 * config.hidden_size
    numbers = config.num_layers * (of_a_layer + config.intermediate_size) + config.vocab_size
    return FLOAT * numbers / (GATHERS * config.num_layers + 1)


def main(words: Sequence[str]) -> None:
    port, processes, process = map(int, words[:3])
    jax.config.update("jax_platforms", "cpu")
    checkpoint = open_checkpoint(words[3])
    native = choose_kernels("auto", Path(words[4]))
    group = join_group(Member("127.0.0.1", port, processes, process))
    column = open_column(group, processes, 1)
    connect_group(group)
    group.watch()
    mesh = TensorMesh(processes)
    stage = Stage(OneDevice(), column, Results(column))
    engines = {
        "whole": Engine(checkpoint, native),
        "tensor": Engine(checkpoint, native, shared_clock(mesh), mesh),
        "pipeline": Engine(checkpoint, native, stream_clock(column), stage),
    }
    found = measure_steps(engines, mesh, native)
    column.finish()
    group.leave()
    if process == 0:
        print(json.dumps(found | derive(found, checkpoint, processes)))


if __name__ == "__main__":
    main(sys.argv[1:])
