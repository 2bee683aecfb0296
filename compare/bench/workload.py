"""What an engine is timed on, by llama-bench's names.

pp512          a prompt of 512 tokens, from its start to its last token's logits
tg128          128 tokens, one by one, after one token
tg128x8        the same for 8 sequences at once; all their tokens count
tg32@4096      32 tokens after 4096
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planish.compare.bench.timing import Timer
from planish.reference.errors import PlanishError, notice


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One measurement. new == 0: a prompt of `context` tokens; otherwise `new` steps after it."""

    name: str
    new: int
    batch: int
    context: int

    def measure(self, timer: Timer) -> float:
        """Tokens per second, measured once."""
        if self.new == 0:
            return self.context / timer.prefill(self.context)
        return self.batch * self.new / timer.decode(self.new, self.batch, self.context)

    def shorten(self, positions: int) -> Workload:
        """The same within a model's positions, shorter if it must be."""
        if self.new == 0:
            context = min(self.context, positions)
            name = f"pp{context}" if context < self.context else self.name
            return replace(self, name=name, context=context)
        new = min(self.new, positions - 1)
        context = min(self.context, positions - new)
        if (new, context) == (self.new, self.context):
            return self
        name = f"tg{new}" + f"@{context}" * (context > 1)
        return replace(self, name=name, new=new, context=context)


def parse_workload(text: str) -> Workload:
    """Parse pp512, tg128, tg128x8 or tg32@4096; raises PlanishError for anything else."""
    found = re.fullmatch(r"(pp|tg)([1-9]\d*)(?:x([1-9]\d*))?(?:@([1-9]\d*))?", text)
    if found is None or (found[1] == "pp" and (found[3] or found[4])):
        expected = "tests such as pp512, tg128, tg128x8, tg32@4096"
        raise PlanishError("unknown", name="tests", expected=expected, found=repr(text))
    count = int(found[2])
    if found[1] == "pp":
        return Workload(name=text, new=0, batch=1, context=count)
    batch, context = int(found[3] or 1), int(found[4] or 1)
    return Workload(name=text, new=count, batch=batch, context=context)


def shorten_all(workloads: Sequence[Workload], positions: int) -> list[Workload]:
    """The workloads within a model's positions; a notice names each that had to be shortened."""
    shortened = [workload.shorten(positions) for workload in workloads]
    for asked, shorter in zip(workloads, shortened, strict=True):
        if shorter != asked:
            notice(f"{asked.name}: {shorter.name} instead, as the model has {positions} positions")
    return shortened
