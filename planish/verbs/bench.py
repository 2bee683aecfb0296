"""Tokens per second of prefill and decoding, compared with the machine's limits and with peers.

With --serve: of a server with several clients at once, and how long they wait.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from planish.joining import check_parallel
from planish.opening import (
    engine_options,
    keep_programs,
    native_kernels,
    open_subject,
    with_attention,
)
from planish.reference.errors import OutputError, PlanishError, one_line
from planish.terminal.flags import (
    add_attention_flags,
    add_cache_flag,
    add_kernels_flag,
    add_links_flag,
    add_max_positions_flag,
)
from planish.terminal.given import notice_idle, refuse_given
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import print_json
from planish.terminal.parallel import add_parallel_flags, parse_parallel
from planish.terminal.progress import progress
from planish.terminal.rows import format_form, format_machine, format_ratio
from planish.verbs.serving import add_serving_flags, run_serving

RECIPES = {
    "110M": "W4A8,W8A8",
    "1.1B": "W4A8,W4A8-g32,W4A16,W8A8,W8A16",
    "7B": "W4A8",
    "mixtral": "W4A8",
    "qwen3_moe": "W4A8",
}
TESTS_HELP = (
    "with commas (default: pp512,tg128). pp512: a prompt of 512 tokens; tg128: 128 new tokens;"
    " tg128x8: of 8 sequences at once; tg32@4096: 32 new tokens after 4096"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--model", metavar="DIR", help="a Hugging Face directory")
    subject.add_argument("--shape", choices=tuple(RECIPES), help="a model of random weights")
    parser.add_argument("--recipes", metavar="NAMES", help="of --shape, as W4A8,W4A8-g32,W8A8")
    parser.add_argument("--tests", default="pp512,tg128", metavar="NAMES", help=TESTS_HELP)
    parser.add_argument(
        "--runs",
        type=int,
        default=5,
        metavar="N",
        help="rounds to measure, after one warm-up round (default: 5)",
    )
    parser.add_argument("--peers", metavar="NAMES", help="with commas: llama.cpp, openvino, torch")
    parser.add_argument(
        "--directory", metavar="DIR", help="keeps --shape's models (default: removed at the end)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    more, engine = parser.add_argument_group("the model"), parser.add_argument_group("the engine")
    add_links_flag(more)
    add_max_positions_flag(more)
    add_attention_flags(engine)
    add_kernels_flag(engine)
    add_cache_flag(engine)
    add_serving_flags(parser)
    add_parallel_flags(parser)


def run(args: argparse.Namespace) -> int:
    refuse_of_the_other(args)
    if args.serve:
        _, recipes, peers = parse_names(args)
        with model_directory(args.directory) as directory:
            return run_serving(args, recipes, peers, directory)
    checkpoint = open_subject(args) if args.model else None
    tests, recipes, peers = parse_names(args)
    notice_idle(args)
    keep_programs(args.compilation_cache)
    with interrupts_kill():
        from planish.compare.bench import speed
        from planish.compare.bench.engines import Processes
        from planish.compare.bench.sizes import MODEL_SIZES

    options = speed.Options(
        workloads=tests, native=False, peers=peers, runs=args.runs, progress=progress
    )
    if checkpoint is not None:
        checkpoint = with_attention(checkpoint, args)
        native, given = engine_options(checkpoint, args)
        cut = parse_parallel(args.parallel or "tensor=1")
        processes = Processes(tensor=cut.tensor, count=cut.processes, options=given)
        options = replace(options, native=native, processes=processes)
        result = speed.measure_model(checkpoint, options)
    else:
        options = replace(options, native=native_kernels(args))
        with model_directory(args.directory) as directory:
            size, adapt = MODEL_SIZES[args.shape], partial(with_attention, args=args)
            result = speed.measure_size(size, recipes, options, directory, adapt)
    print_json(result) if args.json else print(as_text(result))
    return 0


def refuse_of_the_other(args: argparse.Namespace) -> None:
    """Refuse flags of --shape with --model, the reverse, those of --serve without it, and what
    is for one process only with --parallel."""
    if not args.serve:
        refuse_given(args, ("--clients", "--slots"), "is for --serve")
    if check_parallel(args):
        refuse_given(args, ("--serve", "--shape", "--peers"), "is not for --parallel")
    if args.model:
        refuse_given(args, ("--recipes", "--directory"), "is for --shape, not for --model")
    else:
        of_a_model = ("--max_positions", "--allow_links", "--config")
        refuse_given(args, of_a_model, "is for --model, not for --shape")


def parse_names(args: argparse.Namespace) -> tuple[list[Any], list[str], list[str]]:
    """The workloads, recipes and peers; bad ones are refused before anything is measured."""
    with interrupts_kill():
        from planish.compare.bench.engines import parse_recipe
        from planish.compare.bench.peers import find_peer
        from planish.compare.bench.workload import parse_workload

    tests = [parse_workload(name) for name in split_names(args.tests)]
    peers, recipes = split_names(args.peers), split_names(args.recipes or RECIPES.get(args.shape))
    for name in peers:
        find_peer(name)
    for name in recipes:
        parse_recipe(name)
    if not tests or (args.shape and not recipes):
        raise PlanishError("is empty", name="recipes" if tests else "tests")
    if args.runs < 1:
        raise PlanishError("bad value", name="runs", expected="1 or more", found=args.runs)
    return tests, recipes, peers


def split_names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@contextmanager
def model_directory(directory: str | None) -> Iterator[Path]:
    """Where random models are written: --directory, or a temporary one."""
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="planish-") as made:
            yield Path(made)
        return
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        reason = f"cannot be written: {problem.strerror}"
        raise OutputError(reason, path=directory, name="directory") from None
    yield Path(directory)


def as_text(result: dict[str, Any]) -> str:
    """A Markdown table, then load and compile times, the machine and its limits."""
    lines = [
        (
            "| model | engine | format | size | threads | test | tokens/s | low - high | limit |"
            " of limit | planish / this |"
        ),
        "| --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
        *map(as_line, result["rows"]),
        "",
    ]
    lines += [format_loading(engine) for engine in result["engines"]]
    lines += [f"not measured: {line}" for line in result["missing"]]
    limits = result["limits"]
    lines.append(format_machine(result))
    lines.append(
        f"limits: memory {limits['memory_read_bytes_per_second'] / 1e9:.1f} GB/s,"
        f" int8 products {limits['int8_operations_per_second'] / 1e12:.2f} TOP/s"
        f"{format_lanes(limits)}{format_xla(limits)},"
        f" XLA's float32 product {limits['float32_operations_per_second'] / 1e12:.2f} TFLOP/s"
    )
    return "\n".join(lines)


def format_lanes(limits: dict[str, float]) -> str:
    """The rate of int8 products without matrix tiles, if the kernels have tiles."""
    lanes = limits.get("int8_lanes_operations_per_second", 0.0)
    has_tiles = limits["int8_operations_per_second"] > 2 * lanes > 0
    return f" by tiles and {lanes / 1e12:.2f} by vectors" if has_tiles else ""


def format_xla(limits: dict[str, float]) -> str:
    """The rate of XLA's INT8 product, if it is not the one that bounds prompts."""
    rate = limits.get("int8_xla_operations_per_second")
    return f", XLA's int8 product {rate / 1e12:.2f} TOP/s" if rate else ""


def as_line(row: dict[str, Any]) -> str:
    model = one_line(row["model"])
    return (
        f"| {model} | {row['engine']} | {format_form(row)} | {row['size'] / 1e9:.3f} GB |"
        f" {row['threads']} | {row['test']} | {format_rate(row['median'])} |"
        f" {format_rate(row['low'])} - {format_rate(row['high'])} | {format_rate(row['limit'])} |"
        f" {row['percent_of_limit']:.0f} % of {row['limited_by']} | {format_ratio(row)} |"
    )


def format_rate(value: float) -> str:
    """Format with three significant digits or more: 0.123, 12.3, 1234."""
    digits = next((n for n, least in enumerate((100, 10, 1)) if value >= least), 3)
    return f"{value:.{digits}f}"


def format_loading(engine: dict[str, Any]) -> str:
    """The load and compile times of one engine, and what a peer says of its kernels."""
    words = [f"{engine['engine']} {engine['format']}", engine["mode"]]
    name = ", ".join(filter(None, words))
    name += f" ({engine['version']})" if engine["version"] else ""
    line = f"{name}: load {engine['load_seconds']:.2f} s"
    if engine["compile_seconds"] is not None:
        line += f", compile {engine['compile_seconds']:.2f} s"
    return line + (f"; {engine['kernels']}" if engine["kernels"] else "")
