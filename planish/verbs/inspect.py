"""What a model directory contains: architecture, sizes, scheme of every tensor, bytes by kind.

Only headers are read. With --architectures: every supported model_type, its features (in brackets
those that only some models have), examples, and how many goldens check it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planish.opening import (
    check_address_space,
    describe_kernels,
    describe_programs,
    jax_errors,
    open_given,
)
from planish.reference import architectures
from planish.reference.errors import PlanishError, one_line
from planish.reference.files.formats.report import describe_origin, origin_lines
from planish.reference.files.formats.stored import CodedEntry
from planish.reference.files.load import Checkpoint
from planish.reference.files.safetensors import TensorEntry
from planish.reference.model.config import ModelConfig
from planish.reference.model.shapes import block_shapes, outer_shapes
from planish.reference.scheme import Scheme
from planish.terminal.flags import add_cache_flag, add_kernels_flag, add_links_flag
from planish.terminal.given import notice_idle, refuse_given
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import counted, print_json

TABLE = Path(architectures.__file__).with_name("table.json")  # by tests/golden/table.py
KINDS = {
    "weight_scale": "scales",
    "weight_zero_point": "zero points",
    "weight_offset": "offsets",
    "weight_permutation": "act order",
    "input_scale": "scales",
    "input_zero_point": "zero points",
    **dict.fromkeys(("q_scale", "k_scale", "v_scale"), "scales"),
    "bias": "biases",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR", help="a Hugging Face directory")
    what.add_argument(
        "--architectures", action="store_true", help="list the supported architectures"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_links_flag(parser.add_argument_group("the model"))
    engine = parser.add_argument_group("the engine")
    add_kernels_flag(engine)
    add_cache_flag(engine)


def run(args: argparse.Namespace) -> int:
    if args.architectures:
        return list_architectures(args)
    checkpoint = open_given(args)
    notice_idle(args)
    facts = describe(checkpoint)
    facts |= {"kernels": describe_kernels(args), "xla": describe_xla()}
    facts["cache"] = describe_cache(checkpoint.config, facts["kernels"]["use"] != "xla")
    facts["programs"] = describe_programs(args)
    if args.json:
        print_json(facts)
    else:
        print(as_text(facts))
    return 0


def list_architectures(args: argparse.Namespace) -> int:
    """List the supported architectures; flags of a model are refused."""
    of_a_model = ("--kernels", "--compilation_cache", "--allow_links", "--config")
    refuse_given(args, of_a_model, "is for --model, not for --architectures")
    notice_idle(args)
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    if args.json:
        print_json({"architectures": rows})
    else:
        print(as_table(rows))
    return 0


def as_table(rows: list[dict[str, Any]]) -> str:
    """The same as a Markdown table; features that only some goldens have are in brackets."""
    lines = ["| model_type | features | examples | goldens |", "| --- | --- | --- | ---: |"]
    for row in rows:
        words = ", ".join([*row["features"], *(f"[{word}]" for word in row["in_some"])])
        examples = ", ".join(row["examples"])
        lines.append(f"| {row['model_type']} | {words} | {examples} | {row['goldens']} |")
    return "\n".join(lines)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that headers and config say; no tensor is read.

    Shapes and bytes are those in the files: tiles with their padding.
    """
    schemes, entries = checkpoint.schemes(), stored_entries(checkpoint)
    of_tensors = schemes | embedding_scheme(checkpoint)
    tensors = {
        name: tensor_facts(entries[name], name, of_tensors, name in checkpoint.unused)
        for name in sorted(entries)
    }
    sizes: Counter[str] = Counter()
    for facts in tensors.values():
        sizes[facts["kind"]] += facts["bytes"]
    return {
        "model": str(checkpoint.path),
        "architecture": checkpoint.architecture.model_type,
        "config": asdict(checkpoint.config) | {"num_layers": checkpoint.config.num_layers},
        "quantization": checkpoint.quantization,
        "origin": checkpoint.origin and describe_origin(checkpoint.origin),
        "schemes": dict(Counter(str(scheme or "float") for scheme in schemes.values())),
        "layout": checkpoint.layout,
        "parameters": parameters(checkpoint),
        "bytes": sum(sizes.values()),
        "bytes_by_kind": dict(sizes),
        "bits_per_weight": bits_per_weight(checkpoint, tensors),
        "tensors": tensors,
    }


def coded_embedding(checkpoint: Checkpoint) -> CodedEntry | None:
    """The embedding, if another program stored its codes."""
    entry = checkpoint.entries.get(f"{checkpoint.prefix('embed')}.weight")
    return entry if isinstance(entry, CodedEntry) else None


def embedding_scheme(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """The scheme of an embedding that has codes, by its name."""
    entry = coded_embedding(checkpoint)
    return {} if entry is None else {checkpoint.prefix("embed"): entry.scheme}


def stored_entries(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """The tensors of the files by name; an embedding's codes once, also if they are lm_head's."""
    entries = dict(checkpoint.entries | checkpoint.unused)
    embedding, prefix = coded_embedding(checkpoint), checkpoint.prefix("embed")
    if embedding is None or checkpoint.origin is None:
        return entries
    del entries[f"{prefix}.weight"]
    head = checkpoint.prefix("head")
    if checkpoint.config.tie_embeddings and head not in checkpoint.origin.bytes:
        entries = {name: e for name, e in entries.items() if not name.startswith(f"{head}.")}
    return entries | {f"{prefix}.{kind}": entry for kind, entry in embedding.kinds.items()}


def bits_per_weight(checkpoint: Checkpoint, tensors: dict[str, Any]) -> float:
    """The bits that the blocks' linears take in the files, scales included, by weight."""
    linears, origin = linear_weights(checkpoint), checkpoint.origin
    sizes = {} if origin is None else {k: v for k, v in origin.bytes.items() if k in linears}
    held = sum(sizes.values()) + sum(
        facts["bytes"]
        for name, facts in tensors.items()
        if (prefix := name.rpartition(".")[0]) in linears
        and facts["kind"] != "biases"
        and prefix not in sizes
    )
    return float(8 * held / sum(linears.values()))


def linear_weights(checkpoint: Checkpoint) -> dict[str, int]:
    """Prefix in the files -> how many weights of the blocks' linears are stored there."""
    weights: Counter[str] = Counter()
    for layer in range(checkpoint.config.num_layers):
        for part, (shape, _) in block_shapes(checkpoint.config, layer).items():
            weights[checkpoint.stored_prefix(part, layer)] += math.prod(shape)
    return weights


def parameters(checkpoint: Checkpoint) -> int:
    """How many parameters the float model has: linears, embeddings, biases and norms."""
    outer = outer_shapes(checkpoint.config)
    if checkpoint.config.tie_embeddings:
        outer.pop("head")
    small = sum(
        math.prod(entry.shape)
        for name, entry in checkpoint.entries.items()
        if name.endswith(".bias") or (len(entry.shape) == 1 and name.endswith(".weight"))
    )
    return sum(linear_weights(checkpoint).values()) + sum(map(math.prod, outer.values())) + small


def tensor_facts(
    entry: TensorEntry, name: str, schemes: Mapping[str, Scheme | None], unused: bool
) -> dict[str, Any]:
    """One tensor: type, shape, bytes and kind."""
    prefix, _, ending = name.rpartition(".")
    kind, words = KINDS.get(ending, "float weights"), entry.dtype.lower()
    if unused:
        kind = "not used"
    elif ending == "weight" and (scheme := schemes.get(prefix)):
        kind, words = f"INT{scheme.bits} codes", str(scheme).partition(",")[0]
    return {"kind": kind, "scheme": words, "shape": list(entry.shape), "bytes": entry.size}


def as_text(facts: dict[str, Any]) -> str:
    """The same as text: tensors that differ only in their layer share a line."""
    config, lines = facts["config"], []
    model = one_line(facts["model"])
    lines.append(f"{model}: {facts['architecture']}, {facts['parameters']:,} parameters")
    lines.append(
        f"  {config['num_layers']} layers, width {config['hidden_size']}, ffn"
        f" {config['intermediate_size']}, {config['num_heads']} heads of {config['head_dim']},"
        f" {config['num_kv_heads']} key-value heads, vocabulary {config['vocab_size']},"
        f" {config['max_positions']} positions"
    )
    if moe := config["moe"]:
        lines.append(
            f"  {moe['num_experts']} experts of width {moe['intermediate_size']} in a layer,"
            f" {moe['top_k']} for each token"
        )
    lines += quantized_lines(facts)
    lines.append(f"  {facts['bits_per_weight']:.3f} bits per weight of the blocks' linears")
    for kind, size in sorted(facts["bytes_by_kind"].items(), key=lambda item: -item[1]):
        lines.append(f"  {kind:14} {size:14,} bytes")
    lines.append(f"  {'in all':14} {facts['bytes']:14,} bytes")
    lines.append(f"  KV cache: {cache_in_words(facts['cache'])}")
    lines.append(f"  kernels: {facts['kernels']['use']} ({facts['kernels']['why']})")
    lines.append(f"  xla: {xla_in_words(facts['xla'], facts['kernels'])}")
    lines.append(f"  programs: {programs_in_words(facts['programs'])}\n")
    return "\n".join([*lines, *grouped_lines(facts["tensors"])])


def describe_xla() -> dict[str, Any]:
    """What multiplies INT8 in XLA's programs, from one that it compiles; why not, without jax."""
    try:
        check_address_space()
        with interrupts_kill(), jax_errors():
            from planish.process import claim_jax

            claim_jax()
            from planish.fast.xla import products

            library = products.find_library(products.compile_int8_product())
    except PlanishError as problem:
        return {"int8_products": None, "tiles": False, "why": str(problem)}
    tiles = library is not None and products.may_use_tiles()
    return {"int8_products": library or "XLA", "tiles": tiles, "why": "its compiled program"}


def describe_cache(config: ModelConfig, native: bool) -> dict[str, Any]:
    """The KV cache of a row that is as long as the model allows; nothing is allocated."""
    form = {"form": config.kv_cache, "positions": config.max_positions}
    try:
        with interrupts_kill(), jax_errors():
            from planish.fast.native import backend as native_backend
            from planish.fast.session.slots import cache_bytes, ring_slots, slot_count
            from planish.fast.xla import backend as xla_backend

            slots = slot_count(config.max_positions)
            size = cache_bytes(config, 1, slots, native_backend if native else xla_backend)
    except PlanishError:
        return form | {"bytes": None}
    rings = sum(ring_slots(kind.window, slots) < slots for kind in config.layers)
    return form | {"bytes": size, "layers_with_rings": rings}


def cache_in_words(cache: dict[str, Any]) -> str:
    """The same in words."""
    words = f"{cache['form']} for {cache['positions']:,} positions"
    if cache["bytes"] is None:
        return words
    rings = cache["layers_with_rings"]
    short = f", in {counted(rings, 'layer')} only a window and a chunk of them" if rings else ""
    return f"{cache['bytes']:,} bytes, {words}{short}"


def xla_in_words(xla: dict[str, Any], kernels: dict[str, str]) -> str:
    """The same in words; names --kernels xla where only XLA may use tiles."""
    library = xla["int8_products"]
    if library is None:
        return f"not available ({xla['why']})"
    words = "multiplies INT8 " + ("in loops of its own" if library == "XLA" else f"by {library}")
    if not xla["tiles"]:
        return words
    words += ", which may use AMX tiles"
    without = kernels["use"] not in ("native amx", "xla")
    return words + ("; the kernels above do not, --kernels xla would" if without else "")


def programs_in_words(programs: dict[str, Any]) -> str:
    """What a run compiles, and what is kept for all models."""
    compiled = "compiled for each new size of prompt chunk, cache and batch"
    if programs["directory"] is None:
        return f"{compiled}, and not kept"
    kept = ", ".join(f"{count} {name}" for name, count in programs["kept"].items()) or "none yet"
    return (
        f"{compiled}, and kept in {one_line(programs['directory'])} (of all models: {kept},"
        f" {programs['bytes']:,} bytes)"
    )


def quantized_lines(facts: dict[str, Any]) -> list[str]:
    """The recipe in words, and how many linears have each scheme."""
    if facts["origin"] is not None:
        return [one_line_of(line) for line in origin_lines(facts["origin"], facts["schemes"])]
    quantization = facts["quantization"]
    if quantization is None:
        return ["  not quantized"]
    smoothing = quantization.get("smoothing") or {}
    alpha = smoothing.get("alpha", quantization.get("alpha"))
    source = quantization.get("source")
    words = [
        f"from {source}" if isinstance(source, str) else f"recipe {quantization.get('recipe')}",
        f"method {quantization['method']}" if quantization.get("method") else "",
        f"smoothed with alpha {alpha}" if alpha is not None else "",
        "outputs smoothed" if smoothing.get("outputs") else "",
        f"{quantization['attention']} attention" if "attention" in quantization else "",
        f"{quantization['kv_cache']} cache" if "kv_cache" in quantization else "",
        f"codes in {facts['layout']}" if facts["layout"] == "tiles" else "codes in canonical order",
    ]
    schemes = facts["schemes"].items()
    counts = [f"  {counted(count, 'linear')} in {scheme}" for scheme, count in schemes]
    return ["  " + one_line(", ".join(filter(None, words))), *counts]


def one_line_of(line: str) -> str:
    """A line of text whose words come from a file."""
    return "  " + one_line(line)


def grouped_lines(tensors: dict[str, Any]) -> list[str]:
    """Lines of name with {i} for the layer, scheme, shape, and count."""
    groups: Counter[tuple[str, str, str]] = Counter()
    for name, facts in tensors.items():
        generic = ".".join("{i}" if part.isdigit() else part for part in name.split("."))
        groups[generic, facts["scheme"], str(facts["shape"])] += 1
    width, wide = (max(len(group[i]) for group in groups) for i in (0, 2))
    return [
        f"  {name:{width}}  {words:24} {shape:{wide}} {f'x {count}' if count > 1 else ''}".rstrip()
        for (name, words, shape), count in groups.items()
    ]
