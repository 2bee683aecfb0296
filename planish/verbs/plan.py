"""See which models fit which machines, and how fast they would be; nothing is run.

    planish plan --shape 530B --memory 512G --bandwidth 300G --network 100G --nodes 2

A node is a machine, or one process of several on a machine. tokens/s is a bound: memory bandwidth
and the network, after docs/scaling.md. --measure N measures what N processes here add to it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from planish.compare.bench.planning import (
    HEADS,
    KV_CACHES,
    RECIPES,
    SHAPES,
    Machines,
    Use,
    plan_shape,
)
from planish.opening import keep_programs, prepare_kernels
from planish.program_cache import compilation_cache
from planish.reference.errors import PlanishError
from planish.terminal.children import prepare_child
from planish.terminal.given import check_range
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import print_json
from planish.terminal.processors import share_processors
from planish.terminal.sizes import parse_bytes

LATENCY = "100"  # microseconds of a gather over a local network
RATE = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
PAPER = (
    "SmoothQuant (arXiv 2211.10438, abstract) serves MT-NLG 530B in W8A8 within one node, with half"
    " of the GPUs that FP16 needs"
)
MEASURE_SECONDS = 600
MEASURED_SHAPE, MEASURED_RECIPE = "110M", "W8A8"
MOST_MEASURED = SHAPES[MEASURED_SHAPE].size.layers  # a stage for each
MOST_NODES = 9999
MOST_TOKENS = 10**9


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shape", default="70B,405B,530B", metavar="NAMES", help=f"of {', '.join(SHAPES)}")
    add("--recipes", default="W8A8,W4A8", metavar="NAMES", help=f"of {', '.join(RECIPES)}")
    add("--nodes", metavar="N,...", help="how many machines (default: 1,2,4 for each stage)")
    add("--memory", default="512G", metavar="SIZE", help="bytes of a machine (default: 512G)")
    add("--bandwidth", default="300G", metavar="RATE", help="of its memory, bytes/s (300G)")
    add("--network", default="100G", metavar="RATE", help="between machines, bits/s (100G)")
    add("--latency", default=LATENCY, metavar="US", help=f"of a gather, microseconds ({LATENCY})")
    words = "stages into which layers are cut, each of nodes / P nodes (default: 1)"
    add("--pipeline", type=int, default=1, metavar="P", help=words)
    words = f"from one stage to the next, microseconds ({LATENCY})"
    add("--handover", default=LATENCY, metavar="US", help=words)
    words = "of a layer beside reading, microseconds (default: 0)"
    add("--overhead", default="0", metavar="US", help=words)
    add("--efficiency", default="1", metavar="X", help="reached of the bandwidth (1: the bound)")
    add("--batch", type=int, default=1, metavar="N", help="sequences at once (default: 1)")
    add("--context", type=int, default=2048, metavar="N", help="tokens of each (default: 2048)")
    add("--kv_cache", choices=tuple(KV_CACHES), default="float32", help="(default: float32)")
    add("--lm_head", choices=tuple(HEADS), default="float", help="(default: float)")
    add("--measure", type=int, metavar="N", help="measure N processes here instead")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.measure is not None:
        return report_measured(args)
    machines = read_machines(args)
    check_range("--batch", args.batch, 1, MOST_TOKENS)
    check_range("--context", args.context, 1, MOST_TOKENS)
    use = Use(batch=args.batch, context=args.context, kv_cache=args.kv_cache, lm_head=args.lm_head)
    rows = [
        plan_shape(SHAPES[shape], recipe, use, replace(machines, nodes=nodes))
        for shape in read_names("--shape", args.shape, SHAPES)
        for recipe in read_names("--recipes", args.recipes, RECIPES)
        for nodes in read_counts(args)
    ]
    print_json({"rows": rows}) if args.json else print(as_table(rows))
    return 0


def read_machines(args: argparse.Namespace) -> Machines:
    """The machines of the flags; nodes are those of each row."""
    memory = parse_bytes(args.memory, "--memory")
    if not memory:
        raise PlanishError("bad value", name="--memory", expected="above 0, as 512G", found=memory)
    return Machines(
        nodes=1,
        stages=args.pipeline,
        memory=float(memory),
        bandwidth=parse_rate("--bandwidth", args.bandwidth),
        network=parse_rate("--network", args.network) / 8,
        latency=parse_rate("--latency", args.latency) / 1e6,
        efficiency=read_efficiency(args.efficiency),
        handover=parse_rate("--handover", args.handover, least=0) / 1e6,
        overhead=parse_rate("--overhead", args.overhead, least=0) / 1e6,
    )


def read_efficiency(text: str) -> float:
    """A part of the bandwidth, above 0 and at most 1."""
    found = parse_rate("--efficiency", text)
    if found > 1:
        raise PlanishError("bad value", name="--efficiency", expected="at most 1", found=text)
    return found


def parse_rate(name: str, text: str, least: float = 1e-9) -> float:
    """300G -> 3e11: K, M, G and T are powers of 1000, as rates are sold."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([KMGT]?)", text.strip(), re.IGNORECASE)
    value = float(found[1]) * RATE[found[2].upper()] if found else -1.0
    if value < least:
        expected = "a number above 0, as 300G" if least else "0 or more"
        raise PlanishError("bad value", name=name, expected=expected, found=text)
    return value


def read_names(flag: str, text: str, known: dict[str, Any]) -> list[str]:
    """Names with commas, all of them known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [""]:
        if name not in known:
            raise PlanishError("bad value", name=flag, expected=", ".join(known), found=name)
    return names


def read_counts(args: argparse.Namespace) -> list[int]:
    """--nodes 1,2,4 -> [1, 2, 4]; without the flag that many nodes for each stage."""
    text, stages = args.nodes, args.pipeline
    check_range("--pipeline", stages, 1, MOST_NODES)
    if text is None:
        return [stages * nodes for nodes in (1, 2, 4)]
    if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text):
        raise PlanishError("bad value", name="--nodes", expected="numbers, as 1,2,4", found=text)
    counts = [int(word) for word in text.split(",")]
    for count in counts:
        check_range("--nodes", count, 1, MOST_NODES)
    if any(count % stages for count in counts):
        expected = f"multiples of --pipeline {stages}"
        raise PlanishError("bad value", name="--nodes", expected=expected, found=text)
    return counts


def as_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; bytes of each node."""
    lines = [
        (
            "| model | recipe | nodes | stages | weights | KV cache | activations | a node | fits |"
            " reading | gathers | stages wait | tokens/s |"
        ),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
        *map(as_line, rows),
    ]
    if any(row["shape"] == "530B" for row in rows):
        lines += ["", PAPER]
    return "\n".join(lines)


def as_line(row: dict[str, Any]) -> str:
    """One row: GiB of a node, milliseconds of a step, tokens per second."""
    sizes = (f"{row[name] / 2**30:.2f} GiB" for name in ("weights", "kv_cache", "activations"))
    fits = "yes" if row["fits"] else "no"
    return (
        f"| {row['shape']} | {row['recipe']} | {row['nodes']} | {row['stages']} |"
        f" {' | '.join(sizes)} |"
        f" {row['total'] / 2**30:.2f} GiB | {fits} |"
        f" {(row['reading'] + row['overheads']) * 1e3:.2f} ms |"
        f" {row['gathering'] * 1e3:.2f} ms | {row['handing'] * 1e3:.2f} ms |"
        f" {row['tokens_per_second']:.2f} |"
    )


def report_measured(args: argparse.Namespace) -> int:
    """Print milliseconds of a step of each way to run it, and the flags that they mean."""
    check_range("--measure", args.measure, 2, MOST_MEASURED)
    with tempfile.TemporaryDirectory(prefix="planish-") as made:
        found = measure(args.measure, Path(made))
    if args.json:
        print_json(found)
        return 0
    print(f"| a step of {MEASURED_SHAPE} {MEASURED_RECIPE} | ms |\n| --- | ---: |")
    for way in ("whole", "tensor", "pipeline", "whole_8", "tensor_8"):
        print(f"| {way.replace('_', ', sequences: ')} | {found[way] * 1e3:.2f} |")
    print(
        f"\n--bandwidth {found['bandwidth'] / 1e9:.2f}G --overhead {found['overhead'] * 1e6:.0f}"
        f" --latency {found['latency'] * 1e6:.0f} --network {8 * found['network'] / 1e9:.2f}G"
        f" --handover {found['handover'] * 1e6:.0f}"
    )
    return 0


def measure(processes: int, directory: Path) -> dict[str, Any]:
    """What compare/bench/gathers.py finds between processes on this machine's cores."""
    with interrupts_kill():
        from planish.compare.bench.engines import open_random
        from planish.compare.bench.sizes import MODEL_SIZES
    open_random(MODEL_SIZES[MEASURED_SHAPE], MEASURED_RECIPE, directory)
    keep_programs(None)
    prepare_kernels("auto", None)
    cache = compilation_cache(None, tell=False) or directory
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "planish.compare.bench.gathers", str(port), str(processes)]
    places = [str(directory / f"{MEASURED_SHAPE}-{MEASURED_RECIPE}"), str(cache / "kernels")]
    running = [
        subprocess.Popen(
            [*command, str(index), *places],
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare_child(processors),
        )
        for index, processors in enumerate(share_processors(processes))
    ]
    printed = [process.communicate(timeout=MEASURE_SECONDS) for process in running]
    for process, (_, errors) in zip(running, printed, strict=True):
        if process.returncode != 0:
            last = (errors.strip().splitlines() or ["a process ended"])[-1]
            raise PlanishError(last, name="--measure")
    found: dict[str, Any] = json.loads(printed[0][0].strip().splitlines()[-1])
    return found
