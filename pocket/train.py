"""Train the pocket model: python -m planish.pocket.train --minutes 55

    corpus -> byte-level BPE -> tokens -> Llama (flax) by AdamW (optax) -> pocket/model

The learning rate follows the elapsed share of the time, not the steps: warm-up, then a cosine to a
twentieth. So a busy machine gives a less trained model, but never one whose rate has not decayed.
In the last part of the time the sequences are as long as the model allows, so that every position
is trained. Every four minutes the run writes a checkpoint, from which it can resume, exports the
model and prints the held-out perplexity. Because it follows the clock, two runs take different
numbers of steps, and a run cannot be repeated to the bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from tokenizers import Tokenizer

from planish.pocket import CALIBRATION, HELDOUT, MODEL
from planish.pocket.bpe import encode_shuffled, train_tokenizer
from planish.pocket.corpus import Document, corpus, fingerprint, sample_text
from planish.pocket.export import export
from planish.pocket.llama import VOCABULARY, initial_params, loss_of

TOKENS_PER_STEP = 4096
SHORT, LONG, LONG_SHARE = 256, 1024, 0.15  # sequence lengths, and the share of time at the long one
PEAK_RATE, WARMUP = 2e-3, 0.03
FIRST_REPORT, REPORT_SECONDS = 20, 240


@flax.struct.dataclass
class Progress:
    """All that a checkpoint holds; seconds of training, over all resumptions."""

    params: Any
    state: Any  # the optimizer's
    step: int = flax.struct.field(pytree_node=False)  # type: ignore[no-untyped-call]
    seconds: float = flax.struct.field(pytree_node=False)  # type: ignore[no-untyped-call]


def batches(tokens: np.ndarray, length: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Random windows, [TOKENS_PER_STEP / length, length + 1] each."""
    while True:
        starts = rng.integers(0, len(tokens) - length - 1, TOKENS_PER_STEP // length)
        yield np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int32)


def rate(share: float) -> float:
    """The learning rate after a share of the time."""
    if share < WARMUP:
        return PEAK_RATE * share / WARMUP + 1e-6
    along = min(1.0, (share - WARMUP) / (1 - WARMUP))
    return PEAK_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * along)))


def make_optimizer() -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with clipped gradients; train_step sets the rate in its state."""
    adam = optax.inject_hyperparams(optax.adamw)(
        learning_rate=0.0, b1=0.9, b2=0.95, weight_decay=0.1
    )
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


@jax.jit
def train_step(params: Any, state: Any, batch: jax.Array, rate: jax.Array) -> tuple[Any, Any, Any]:
    loss, gradients = jax.value_and_grad(loss_of)(params, batch)
    state[1].hyperparams["learning_rate"] = rate
    updates, state = make_optimizer().update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def heldout_perplexity(params: Any, tokens: np.ndarray, count: int = 64) -> float:
    """exp of the mean cross entropy over the first windows of the held-out split."""
    windows = min(count, len(tokens) // LONG)
    pieces = tokens[: windows * LONG].reshape(windows, 1, LONG).astype(np.int32)
    evaluate = jax.jit(loss_of)
    return math.exp(np.mean([float(evaluate(params, piece)) for piece in pieces]))


def save_progress(path: Path, progress: Progress) -> None:
    """Save arrays and two numbers; renamed into place when complete."""
    arrays: dict[str, Any] = {
        str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(progress))
    }
    numbers = json.dumps({"step": progress.step, "seconds": progress.seconds})
    hidden = path.with_suffix(".tmp.npz")
    np.savez(hidden, numbers=np.array(numbers), **arrays)
    hidden.replace(path)


def load_progress(path: Path, like: Progress) -> Progress:
    """Load the checkpoint at `path` into the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    with np.load(path) as file:
        numbers = json.loads(str(file["numbers"]))
        leaves = [jnp.asarray(file[str(i)]) for i in range(len(leaves))]
    restored: Progress = jax.tree.unflatten(structure, leaves).replace(**numbers)
    return restored


def train(minutes: float, work: Path, seed: int = 0) -> None:
    """Train; resumes an interrupted run from `work`."""
    work.mkdir(parents=True, exist_ok=True)
    documents = corpus()
    seen = [d for d in documents if not d.heldout]
    unseen = [d for d in documents if d.heldout]
    tokenizer = prepare(work / "tokenizer.json", seen, unseen)
    tokens = encode_shuffled(tokenizer, [d.text for d in seen])
    heldout = encode_shuffled(tokenizer, [d.text for d in unseen])
    print(f"corpus {fingerprint(documents)}: {len(tokens)} train, {len(heldout)} held-out tokens")
    params = initial_params(seed)
    print(f"{sum(p.size for p in jax.tree.leaves(params))} parameters", flush=True)
    progress = Progress(params, make_optimizer().init(params), 0, 0.0)
    if (work / "progress.npz").exists():
        progress = load_progress(work / "progress.npz", progress)
    run(progress, minutes * 60, work / "progress.npz", tokenizer, tokens, heldout)


def prepare(path: Path, seen: Sequence[Document], unseen: Sequence[Document]) -> Tokenizer:
    """Make the tokenizer and the two texts of the model, unless an earlier run has made them."""
    if path.exists():
        return Tokenizer.from_file(str(path))
    CALIBRATION.write_text(sample_text(seen, 400_000), encoding="utf-8")
    HELDOUT.write_text(sample_text(unseen, 150_000), encoding="utf-8")
    tokenizer = train_tokenizer((d.text for d in seen), VOCABULARY)
    tokenizer.save(str(path))
    return tokenizer


def run(
    progress: Progress,
    budget: float,
    path: Path,
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    heldout: np.ndarray,
) -> None:
    """Train for `budget` seconds, with a checkpoint, an export and a report now and then."""
    rng = np.random.default_rng(progress.step)
    sources = {length: batches(tokens, length, rng) for length in (SHORT, LONG)}
    losses: list[float] = []
    start = time.perf_counter() - progress.seconds
    reported = progress.seconds
    while progress.seconds < budget:
        share = progress.seconds / budget
        batch = next(sources[LONG if share > 1 - LONG_SHARE else SHORT])
        now = jnp.float32(rate(share))
        params, state, loss = train_step(progress.params, progress.state, batch, now)
        losses.append(float(loss))
        progress = Progress(params, state, progress.step + 1, time.perf_counter() - start)
        due = progress.seconds - reported > REPORT_SECONDS or progress.step == FIRST_REPORT
        if due or progress.seconds >= budget:
            save_progress(path, progress)
            export(params, tokenizer, MODEL)
            report(progress, share, float(np.mean(losses)), heldout)
            losses, reported = [], progress.seconds


def report(progress: Progress, share: float, loss: float, heldout: np.ndarray) -> None:
    count = progress.step * TOKENS_PER_STEP
    perplexity = heldout_perplexity(progress.params, heldout)
    print(
        f"{share:6.1%} step {progress.step} tokens {count} ({count / progress.seconds:.0f}/s)"
        f" train {loss:.3f} held-out perplexity {perplexity:.3f}",
        flush=True,
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    train(flags.FLAGS.minutes, Path(flags.FLAGS.work))


if __name__ == "__main__":
    flags.DEFINE_float("minutes", 55, "how long to train, in all, over every resumption")
    flags.DEFINE_string("work", "pocket/work", "directory of the tokenizer and the checkpoints")
    app.run(main)
