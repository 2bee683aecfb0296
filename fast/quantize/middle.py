"""What a block's attention leaves, kept from one pass of the samples for the following ones.

GPTQ with true_sequential passes the samples through a block once for each stage. When gate and up
are observed, and down, and when the block is run at the end, attention is already what it was: the
same linears, the same inputs. So its outputs are kept. They come from one program, `attend_batch`,
so a later run that computes them anew finds the same bits.

They go where the runner's hidden states go, and are forgotten with the hidden states that they were
made of.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from planish.reference.model.weights import Block
from planish.reference.quantize.hidden import States
from planish.reference.quantize.runner import Hidden

MODULES = ("attention_norm", "q", "k", "v", "q_norm", "k_norm", "o", "attention_output_norm")


@dataclass(frozen=True, kw_only=True)
class Middle:
    """The hidden states [T, D] of each sample between attention and MLP, and what made them."""

    states: States
    modules: tuple[Any, ...]
    native: bool


class Kept:
    """The middle of one block, the last one."""

    def __init__(self) -> None:
        self.by_inputs: weakref.WeakKeyDictionary[States, Middle] = weakref.WeakKeyDictionary()

    def find(self, block: Block, hidden: Hidden, native: bool) -> States | None:
        """What is kept of these inputs and linears, which must be the same objects; or None."""
        if not isinstance(hidden, States) or (found := self.by_inputs.get(hidden)) is None:
            return None
        pairs = zip(found.modules, attention_modules(block), strict=True)
        same = found.native == native and all(a is b for a, b in pairs)
        return found.states if same else None

    def keep(self, block: Block, hidden: Hidden, native: bool, states: States) -> None:
        """Keep these instead; nothing if the inputs are a list of a few samples."""
        self.by_inputs.clear()
        if isinstance(hidden, States):
            modules = attention_modules(block)
            self.by_inputs[hidden] = Middle(states=states, modules=modules, native=native)


def attention_modules(block: Block) -> tuple[Any, ...]:
    """All that the first half of a block depends on."""
    return (block.kind, *(getattr(block, name) for name in MODULES))
