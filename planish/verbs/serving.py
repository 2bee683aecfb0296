"""bench --serve: planish serve under load, beside the servers of peers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from planish.opening import open_subject
from planish.reference.errors import PlanishError, one_line
from planish.terminal.given import notice_idle, refuse_given
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import print_json
from planish.terminal.progress import progress
from planish.terminal.rows import format_form, format_machine, format_ratio

CLIENTS = "1,4,8,16,32"
MOST_CLIENTS = 256
PASSED_ON = ("kernels", "attention", "kv_cache", "compilation_cache", "max_positions")


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    serving = parser.add_argument_group("a server under load")
    words = "start planish serve, and measure what several clients at once see of it"
    serving.add_argument("--serve", action="store_true", help=words)
    words = f"how many clients at once, with commas (default: {CLIENTS})"
    serving.add_argument("--clients", default=CLIENTS, metavar="NAMES", help=words)
    words = "requests that the server answers at the same time (default: the most clients)"
    serving.add_argument("--slots", type=int, metavar="N", help=words)


def run_serving(
    args: argparse.Namespace, recipes: list[str], peers: list[str], directory: Path
) -> int:
    """Measure and print. directory: where random models are."""
    refuse_given(args, ("--tests",), "is not for --serve")
    clients = parse_clients(args.clients)
    checkpoint = open_subject(args) if args.model else None
    notice_idle(args)
    with interrupts_kill():
        from planish.compare.bench.engines import open_random
        from planish.compare.bench.peers import find_server
        from planish.compare.bench.serving.load import Options, measure_servers
        from planish.compare.bench.sizes import MODEL_SIZES
    for name in peers:
        find_server(name)
    if checkpoint is not None:
        title = checkpoint.path.name
        found = {(checkpoint.quantization or {}).get("recipe", "float"): checkpoint}
    else:
        title, size = args.shape, MODEL_SIZES[args.shape]
        found = {recipe: open_random(size, recipe, directory) for recipe in recipes}
    options = Options(
        clients=clients,
        peers=peers,
        words=words_of(args, max(clients)),
        runs=args.runs,
        directory=directory,
        progress=progress,
    )
    result = measure_servers(title, found, options)
    print_json(result) if args.json else print(as_text(result))
    return 0


def parse_clients(text: str) -> list[int]:
    """1,4,8 -> [1, 4, 8]; PlanishError for what is no number of clients."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    counts = [int(word) for word in words if word.isdecimal()]
    if not words or len(counts) < len(words) or not all(1 <= n <= MOST_CLIENTS for n in counts):
        expected = f"numbers from 1 to {MOST_CLIENTS}, as {CLIENTS}"
        raise PlanishError("bad value", name="clients", expected=expected, found=repr(text))
    return counts


def words_of(args: argparse.Namespace, clients: int) -> list[str]:
    """The flags of planish serve."""
    words = ["--slots", str(args.slots or clients), "--queue", str(4 * clients)]
    for name in PASSED_ON:
        value = getattr(args, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return words


def as_text(result: dict[str, Any]) -> str:
    """A Markdown table, and the machine."""
    lines = [
        (
            "| model | engine | format | threads | test | tokens/s | low - high | first token p50 |"
            " p99 | gap p50 | p99 | largest | planish / this |"
        ),
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *(as_line(row) for row in result["rows"] if row["unit"] == "tokens/s"),
        "",
        *(as_sentence(row) for row in result["rows"] if row["unit"] != "tokens/s"),
        *(f"not measured: {line}" for line in result["missing"]),
    ]
    lines.append(f"{format_machine(result)}; times in ms")
    return "\n".join(lines)


def as_line(row: dict[str, Any]) -> str:
    times = ("first_p50", "first_p99", "gap_p50", "gap_p99", "gap_high")
    return (
        f"| {one_line(row['model'])} | {row['engine']} | {format_form(row)} | {row['threads']} |"
        f" {row['test']} | {row['median']:.1f} | {row['low']:.1f} - {row['high']:.1f} |"
        + "".join(f" {row[name]:.1f} |" for name in times)
        + f" {format_ratio(row)} |"
    )


def as_sentence(row: dict[str, Any]) -> str:
    """What a long prompt does to others, and what it costs once more."""
    return (
        f"{row['test']}: {row['engine']} {row['format']}: gaps of the others {row['gap_p50']:.1f}"
        f" (p50), {row['gap_p99']:.1f} (p99), {row['gap_high']:.1f} (largest), p99 / p50"
        f" {row['median']:.2f} ({row['low']:.2f} - {row['high']:.2f}); its first token after"
        f" {row['first_p50']:.0f}, after {row['again']:.0f} once more alone"
    )
