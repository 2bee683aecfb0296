"""See which models fit which machines, and how fast they would be; nothing is run.

    planish plan --shape 530B --memory 512G --bandwidth 300G --network 100G --nodes 2

A node is a machine, or one process of several on a machine. tokens/s is a bound: memory bandwidth
and the network, after docs/scaling.md. --measure N measures the gathers between N processes here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from typing import Any

from planish.compare.bench.planning import (
    KV_CACHES,
    RECIPES,
    SHAPES,
    Machines,
    Use,
    plan_shape,
)
from planish.reference.errors import PlanishError
from planish.terminal.children import prepare_child
from planish.terminal.output import print_json
from planish.terminal.processors import share_processors
from planish.terminal.sizes import parse_bytes

LATENCY = "100"  # microseconds of a gather over a local network
RATE = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
PAPER = (
    "SmoothQuant (arXiv 2211.10438) runs MT-NLG 530B on one node of 8 GPUs in W8A8, where FP16"
    " needs 16: its abstract and section 5"
)
MEASURE_SECONDS = 300


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shape", default="70B,405B,530B", metavar="NAMES", help=f"of {', '.join(SHAPES)}")
    add("--recipes", default="W8A8,W4A8", metavar="NAMES", help=f"of {', '.join(RECIPES)}")
    add("--nodes", default="1,2,4", metavar="N,...", help="how many machines (default: 1,2,4)")
    add("--memory", default="512G", metavar="SIZE", help="bytes of a machine (default: 512G)")
    add("--bandwidth", default="300G", metavar="RATE", help="of its memory, bytes/s (300G)")
    add("--network", default="100G", metavar="RATE", help="between machines, bits/s (100G)")
    add("--latency", default=LATENCY, metavar="US", help=f"of a gather, microseconds ({LATENCY})")
    add("--efficiency", default="1", metavar="X", help="reached of the bandwidth (1: the bound)")
    add("--batch", type=int, default=1, metavar="N", help="sequences at once (default: 1)")
    add("--context", type=int, default=2048, metavar="N", help="tokens of each (default: 2048)")
    add("--kv_cache", choices=tuple(KV_CACHES), default="float32", help="(default: float32)")
    add("--measure", type=int, metavar="N", help="measure gathers between N processes instead")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.measure is not None:
        return report_gathers(args)
    machines, use = (
        read_machines(args),
        Use(
            batch=positive("--batch", args.batch),
            context=positive("--context", args.context),
            kv_cache=args.kv_cache,
        ),
    )
    rows = [
        plan_shape(SHAPES[shape], recipe, use, replace(machines, nodes=nodes))
        for shape in read_names("--shape", args.shape, SHAPES)
        for recipe in read_names("--recipes", args.recipes, RECIPES)
        for nodes in read_counts(args.nodes)
    ]
    print_json({"rows": rows}) if args.json else print(as_table(rows))
    return 0


def read_machines(args: argparse.Namespace) -> Machines:
    """The machines of the flags; nodes are those of each row."""
    memory = parse_bytes(args.memory, "--memory")
    return Machines(
        nodes=1,
        memory=float(memory or 0),
        bandwidth=parse_rate("--bandwidth", args.bandwidth),
        network=parse_rate("--network", args.network) / 8,
        latency=parse_rate("--latency", args.latency) / 1e6,
        efficiency=parse_rate("--efficiency", args.efficiency),
    )


def parse_rate(name: str, text: str) -> float:
    """300G -> 3e11: K, M, G and T are powers of 1000, as rates are sold."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip(), re.IGNORECASE)
    value = float(found[1]) * RATE[found[2].upper()] if found else 0.0
    if value <= 0:
        raise PlanishError("bad value", name=name, expected="a number above 0, as 300G", found=text)
    return value


def positive(name: str, value: int) -> int:
    """A count of at least one."""
    if value < 1:
        raise PlanishError("bad value", name=name, expected="1 or more", found=value)
    return value


def read_names(flag: str, text: str, known: dict[str, Any]) -> list[str]:
    """Names with commas, all of them known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [""]:
        if name not in known:
            raise PlanishError("bad value", name=flag, expected=", ".join(known), found=name)
    return names


def read_counts(text: str) -> list[int]:
    """1,2,4 -> [1, 2, 4]."""
    if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text):
        raise PlanishError("bad value", name="--nodes", expected="numbers, as 1,2,4", found=text)
    return [positive("--nodes", int(word)) for word in text.split(",")]


def as_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; bytes of each node."""
    lines = [
        (
            "| model | recipe | nodes | weights | KV cache | activations | a node | fits |"
            " reading | gathers | tokens/s |"
        ),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
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
        f"| {row['shape']} | {row['recipe']} | {row['nodes']} | {' | '.join(sizes)} |"
        f" {row['total'] / 2**30:.2f} GiB | {fits} | {row['reading'] * 1e3:.2f} ms |"
        f" {row['gathering'] * 1e3:.2f} ms | {row['tokens_per_second']:.2f} |"
    )


def report_gathers(args: argparse.Namespace) -> int:
    """Print microseconds of a gather by its bytes, and the flags that they mean."""
    from planish.compare.bench.gathers import fit_line

    times = measure(positive("--measure", args.measure))
    latency, rate = fit_line(times, args.measure)
    found = {"microseconds": {size: t * 1e6 for size, t in times.items()}}
    found |= {"latency_us": latency * 1e6, "bits_per_second": rate * 8}  # type: ignore[dict-item]
    if args.json:
        print_json(found)
        return 0
    print("| bytes gathered | microseconds |\n| ---: | ---: |")
    for size, seconds in times.items():
        print(f"| {size} | {seconds * 1e6:.0f} |")
    print(f"\n--latency {latency * 1e6:.0f} --network {rate * 8 / 1e9:.2f}G")
    return 0


def measure(processes: int) -> dict[int, float]:
    """Seconds of a gather by its bytes, between processes on this machine's cores."""
    if processes < 2:
        raise PlanishError("bad value", name="--measure", expected="2 or more", found=processes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "planish.compare.bench.gathers", str(port), str(processes)]
    running = [
        subprocess.Popen(
            [*command, str(index)],
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
            raise PlanishError(
                f"--measure: {errors.strip().splitlines()[-1:] or 'a process ended'}"
            )
    times = json.loads(printed[0][0].strip().splitlines()[-1])
    return {int(size): float(seconds) for size, seconds in times.items()}
