"""The engines that are measured: planish with each recipe, and its peers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish.compare.bench.machine import count_threads
from planish.compare.bench.peers import PEERS, PeerError, find_peer, is_installed
from planish.compare.bench.peers.process import PeerProcess
from planish.compare.bench.random_model import write_random
from planish.compare.bench.roofline import count_expert_bytes, count_token_bytes
from planish.compare.bench.sizes import ModelSize
from planish.compare.bench.timing import EngineTimer, Timer
from planish.fast.session.engine import Engine
from planish.reference.errors import RecipeError
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.quantize.recipe import RECIPES

PEER_BITS = {"Q4_0": 4, "int4": 4, "Q8_0": 8, "int8": 8, "bf16": 16}  # of a format's first word


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Those that run one model: `tensor` of them read and compute the parts of each linear at the
    same time, which all do for a prompt in chunks. options: of Engine, in this process."""

    tensor: int = 1
    count: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As a mode of the engine; empty for one process."""
        stages = self.count // self.tensor
        cuts = (f"tensor={self.tensor}", f"pipeline={stages}") if self.count > 1 else ()
        cut = ",".join(word for word in cuts if not word.endswith("=1"))
        return f"{self.count} processes, {cut}" if cut else ""


ALONE = Processes()


@dataclass(frozen=True, kw_only=True)
class MeasuredEngine:
    """One engine with one model. Peers are compared with planish at the same bits per weight."""

    name: str
    format: str
    bits: int
    timer: Timer
    weight_bytes: int  # that one token reads
    load_seconds: float
    integer: bool  # activations are INT8, so that integer products bound a prompt
    is_planish: bool
    version: str = ""
    mode: str = ""  # of a peer that does not run in its usual way; of planish, its processes
    kernels: str = ""  # what multiplies, as a peer describes it
    processes: Processes = ALONE
    expert_bytes: int = 0  # of all experts, of which a batch reads more than one token does


def open_planish(
    checkpoint: Checkpoint, native: bool, name: str | None = None, processes: Processes = ALONE
) -> MeasuredEngine:
    """planish on a checkpoint; `name` of its format, by default its recipe's."""
    quantization = checkpoint.quantization or {}
    engine = Engine(checkpoint, native, **processes.options)
    schemes = [scheme for scheme in checkpoint.schemes().values() if scheme is not None]
    return MeasuredEngine(
        name="planish",
        format=name or quantization.get("recipe", "float"),
        bits=find_usual_bits(checkpoint),
        timer=EngineTimer(engine),
        weight_bytes=count_token_bytes(checkpoint),
        load_seconds=engine.load_seconds,
        integer=any(scheme.activation != "float" for scheme in schemes),
        is_planish=True,
        mode=str(processes),
        processes=processes,
        expert_bytes=count_expert_bytes(checkpoint),
    )


def find_usual_bits(checkpoint: Checkpoint) -> int:
    """The bits of most linears in the blocks; 32 for float."""
    schemes, head = checkpoint.schemes(), checkpoint.prefix("head")
    bits = Counter(
        scheme.bits if scheme else 32 for name, scheme in schemes.items() if name != head
    )
    return bits.most_common(1)[0][0]


def parse_recipe(text: str) -> tuple[str, int | None]:
    """W4A8-g32 -> (W4A8, 32); without a group size (W4A8, None), the recipe's default.

    Raises RecipeError for an unknown recipe.
    """
    name, _, group = text.partition("-g")
    if name not in RECIPES or (group and not group.isdigit()):
        expected = "recipes such as W4A8, W4A8-g32, W8A8"
        raise RecipeError("unknown", name="recipes", expected=expected, found=repr(text))
    return name, int(group) if group else None


def open_random(size: ModelSize, recipe: str, directory: Path) -> Checkpoint:
    """A checkpoint of random weights, written into the directory unless it is there already."""
    name, group = parse_recipe(recipe)
    path = directory / f"{size.name}-{recipe}"
    if not path.exists():
        write_random(size, path, name, group)
    return open_checkpoint(path)


def open_peers(
    stack: ExitStack, names: list[str], size: ModelSize, bits: set[int], directory: Path | None
) -> tuple[list[MeasuredEngine], list[str]]:
    """Start every peer in each of its formats that has one of these bits per weight.

    Also returns a line for each peer that is not installed, and for each format that cannot be
    loaded.
    """
    found, missing = list[MeasuredEngine](), []
    for peer in map(find_peer, names):
        if not is_installed(peer):
            missing.append(f"{peer.name}: not installed ({peer.install})")
            continue
        for form in (form for form in peer.formats if count_bits(form) in bits):
            try:
                found.append(open_peer(stack, peer.name, form, size, directory))
            except PeerError as problem:
                missing.append(f"{form} of {problem}")
    return found, missing


def count_bits(form: str) -> int:
    """Bits per weight of a peer's format: int8-dynamic -> 8."""
    return PEER_BITS[form.partition("-")[0]]


def open_peer(
    stack: ExitStack, name: str, form: str, size: ModelSize, directory: Path | None
) -> MeasuredEngine:
    """Start a peer's process, which runs until the stack is closed."""
    process = PeerProcess(PEERS[name], size, form, count_threads(), directory=directory)
    timer = stack.enter_context(process)
    facts = timer.facts
    return MeasuredEngine(
        name=name,
        format=form,
        bits=count_bits(form),
        timer=timer,
        weight_bytes=facts.bytes,
        load_seconds=facts.load_seconds,
        integer=True,
        is_planish=False,
        version=facts.version,
        mode=facts.mode,
        kernels=facts.kernels,
    )


def size_of(checkpoint: Checkpoint) -> ModelSize | None:
    """The size at which peers are run for this model; None if it is not a plain Llama."""
    config = checkpoint.config
    if config.model_type != "llama" or config.head_dim * config.num_heads != config.hidden_size:
        return None
    return ModelSize(
        name=checkpoint.path.name,
        hidden=config.hidden_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
    )
