"""GPTQ: round one column after another, and let the columns that follow make up for the error.

Source: GPTQ, arXiv 2210.17323, sections 3 and 4; code: https://github.com/IST-DASLab/gptq.

    minimise || W X - W^ X ||^2                                              eq. (1)
    H = 2/n sum x x^T,  H^-1 = U^T U,  U upper triangular                    section 4, step 3
    for each column i:    q_i = the nearest code of w_i
                          e_i = (w_i - value of q_i) / U_ii                  eq. (2)
                          w_j <- w_j - e_i U_ij, for the columns j > i

Columns come in blocks of 128; the columns after a block get its updates at once, as one matrix
product, eq. (4). A group's scale and zero point come from the columns as they are when its first
one is reached (the original code, with groups below 128, misses the updates of the same block).
With act_order the columns come by descending H_jj, and the groups keep their places in the row:
their parameters then come from the weights before any update ("static groups").

The factor U is computed in float64 and rounded to float32 once, because the inverse of H loses
digits where the diagonal spans many orders of magnitude; the solves are a few percent of the time.
Everything after U is in float32, so codes given U are comparable between runtimes.

N outputs, K inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planish.reference.errors import QuantizationError
from planish.reference.linear import float_weight
from planish.reference.model.weights import Block, block_linears, replace_modules, split_expert
from planish.reference.quantize.grid import grid_codes, grid_parameters, grid_values
from planish.reference.quantize.job import BlockJob
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.observe import MOMENTS, Observer
from planish.reference.quantized import QuantizedWeight, from_codes
from planish.reference.scheme import Scheme

COLUMNS = 128  # in a block
RAISE = 10.0  # the next damping after a failed Cholesky
LARGEST_DAMPING = 1e6
STAGES = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))  # of true_sequential
LEADERS = {"k": "q", "v": "q", "gate": "up"}  # they read what these read

TOKENS = Observer(measure=lambda x: (abs(x).max(axis=1) > 0).sum(), merge=np.add)

Grid = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # codes [N, K], scale, zero point


@dataclass(frozen=True, kw_only=True)
class Factor:
    """What gptq_codes needs of a Hessian.

    upper:    U, float32 [K, K], H^-1 = U^T U, of the columns in `order`
    order:    int [K], the columns by descending H_jj; None for the order of the row
    dead:     bool [K], the inputs that are always 0
    damping:  the share of the mean diagonal that was added, more than asked if Cholesky failed
    """

    upper: np.ndarray
    order: np.ndarray | None
    dead: np.ndarray
    damping: float


Solver = Callable[..., Grid]


def quantize_block(job: BlockJob, block: Block) -> Block:
    """Quantize a block's linears in stages, each fed by the quantized ones before it."""
    return quantize_stages(job, block, gptq_codes)


def quantize_stages(job: BlockJob, block: Block, solve: Solver) -> Block:
    """As quantize_block; solve is gptq_codes, or a faster one."""
    tokens = expert_tokens(job, block)
    rounded: list[str] = []
    for stage in stages(job, block):
        factors = factor_all(job, block, stage, tokens)
        linears, changed = block_linears(block), {}
        for part in stage:
            factor = factors.get(leader_of(part))
            rounded += [] if factor else [part]
            weight = quantize_part(job, part, float_weight(linears[part]), factor, solve)
            changed[part] = job.with_weight(part, linears[part], weight)
        block = replace_modules(block, changed)
    note_rounded(job, rounded)
    return block


def stages(job: BlockJob, block: Block) -> list[list[str]]:
    """The linears to quantize, in the order of execution; all at once without true_sequential."""
    parts = [part for part in block_linears(block) if job.schemes.get(part) is not None]
    if not job.settings.true_sequential:
        return [parts] if parts else []
    found = [[part for part in parts if part.split(".")[-1] in stage] for stage in STAGES]
    return [stage for stage in found if stage]


def leader_of(part: str) -> str:
    """The linear whose input is observed for this one: q for v, experts.3.up for experts.3.gate."""
    *prefix, last = part.split(".")
    return ".".join([*prefix, LEADERS.get(last, last)])


def expert_tokens(job: BlockJob, block: Block) -> dict[str, int]:
    """The calibration tokens that each expert's linears see; empty for a block without experts."""
    parts = [part for part in block_linears(block) if split_expert(part)[1] is not None]
    if not parts or not job.inputs:
        return {}
    given = job.config, block, job.inputs, job.names, TOKENS
    ups = {part for part in parts if part.endswith(".up")}
    found, _ = job.runner.observe(*given, parts=ups)
    return {part: int(found.get(f"{part.rsplit('.', 1)[0]}.up", 0)) for part in parts}


def factor_all(
    job: BlockJob, block: Block, stage: list[str], tokens: Mapping[str, int]
) -> dict[str, Factor]:
    """The factor of each input of a stage; experts with fewer tokens than a group have none."""
    if not job.inputs:
        raise QuantizationError("gptq needs a calibration", name=job.name(stage[0]))
    first = {leader_of(part): part for part in reversed(stage)}
    wanted = {leader for leader, part in first.items() if sees_enough(job, part, tokens)}
    given = job.config, block, job.inputs, job.names, MOMENTS
    hessians = job.runner.observe(*given, parts=wanted)[0] if wanted else {}
    total, settings = sum(len(x) for x in job.inputs), job.settings
    factors = {}
    for leader in [leader for leader in first if leader in wanted]:
        name = job.name(first[leader])
        hessian = hessians.pop(leader) * np.float32(2 / tokens.get(leader, total))
        factors[leader] = factor_hessian(hessian, settings.damping, settings.act_order, name)
        note_damping(job, name, factors[leader])
    return factors


def sees_enough(job: BlockJob, part: str, tokens: Mapping[str, int]) -> bool:
    """Whether an expert saw as many tokens as a group has weights, or 128 if a row is one group."""
    scheme = job.schemes[part]
    if part not in tokens or scheme is None:
        return True
    return tokens[part] >= (COLUMNS if scheme.group_size == -1 else scheme.group_size)


def note_damping(job: BlockJob, name: str, factor: Factor) -> None:
    """Say that Cholesky failed at the damping asked for."""
    if factor.damping != job.settings.damping:
        job.note(
            f"{name}: the Hessian of its inputs is singular at damping "
            f"{job.settings.damping:g}; used {factor.damping:g}"
        )


def note_rounded(job: BlockJob, parts: list[str]) -> None:
    """List the experts' linears that were rounded to nearest."""
    if parts:
        why = "saw fewer calibration tokens than a group has weights, rounded to nearest"
        names = ", ".join(job.name(part) for part in parts)
        job.note(f"{len(parts)} linears of experts {why}: {names}")


def quantize_part(
    job: BlockJob, part: str, w: np.ndarray, factor: Factor | None, solve: Solver
) -> QuantizedWeight:
    """One weight by GPTQ, or to nearest without a factor."""
    scheme = job.schemes[part]
    assert scheme is not None  # stages has only linears with one
    if factor is None:
        return quantize_weight(w, scheme, job.rule, job.name(part))
    codes, scale, zero = solve(w, factor, scheme, job.rule, job.name(part))
    return from_codes(codes, scale, zero, scheme)


def factor_hessian(
    hessian: np.ndarray, damping: float = 0.01, act_order: bool = False, name: str = "w"
) -> Factor:
    """H [K, K] -> U. Dead inputs get H_jj = 1; damping x mean(diag H) is added to the diagonal.

    If H is not positive definite even so, the damping is multiplied by 10 until it is.
    Raises QuantizationError, naming the linear, for a Hessian with NaN or Inf.
    """
    if not np.isfinite(hessian).all():
        problem = f"{name}: the Hessian of its inputs overflows float32"
        raise QuantizationError(problem, expected="smaller activations")
    h = hessian.astype(np.float64)
    dead = np.diagonal(h) <= 0
    h[dead, dead] = 1
    order = np.argsort(-np.diagonal(h), kind="stable") if act_order else None
    if order is not None:
        h = h[np.ix_(order, order)]
    while damping <= LARGEST_DAMPING:
        upper = upper_factor(h, damping)
        if upper is not None:
            return Factor(upper=upper, order=order, dead=dead, damping=damping)
        damping *= RAISE
    raise QuantizationError(f"{name}: the Hessian of its inputs cannot be inverted")


def upper_factor(h: np.ndarray, damping: float) -> np.ndarray | None:
    """U with (H + damping mean(diag H) I)^-1 = U^T U, float32; None if H is not positive definite.

    The Cholesky factor of the inverse without the inverse: H = R R^T with R upper triangular, which
    is Cholesky with rows and columns in reverse, and U = R^-1.
    """
    damped = h + damping * np.diagonal(h).mean() * np.eye(len(h))
    try:
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError:
        return None
    with np.errstate(all="ignore"):  # the check below sees it
        upper = invert_upper(lower[::-1, ::-1]).astype(np.float32)
    fine = np.isfinite(upper).all() and (np.diagonal(upper) > 0).all()
    return upper if fine else None


def invert_upper(r: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix, by halves: [[A, B], [0, D]]."""
    size = len(r)
    if size <= 64:
        return np.triu(np.linalg.inv(r))
    half = size // 2
    a, d = invert_upper(r[:half, :half]), invert_upper(r[half:, half:])
    inverse = np.zeros_like(r, order="C")
    inverse[:half, :half], inverse[half:, half:] = a, d
    inverse[:half, half:] = -(a @ r[:half, half:]) @ d
    return inverse


def gptq_codes(
    w: np.ndarray, factor: Factor, scheme: Scheme, rule: str = "signed", name: str = "w"
) -> Grid:
    """Codes [N, K], scale and zero point of w [N, K] given the factor of its inputs' Hessian.

    Algorithm 1 of the paper. Raises QuantizationError naming the tensor.
    """
    w = np.where(factor.dead, np.float32(0), w).astype(np.float32)  # a copy
    columns = ColumnGrids.start(w, scheme, rule, factor.order, name)
    w = w if factor.order is None else w[:, factor.order]
    codes = np.zeros(w.shape, np.uint8 if scheme.bits == 4 else np.int8)
    u, k = factor.upper, w.shape[1]
    for start in range(0, k, COLUMNS):
        stop = min(start + COLUMNS, k)
        errors = np.zeros((len(w), stop - start), np.float32)
        for i in range(start, stop):
            scale, zero = columns.at(i, w)  # [N, 1] both
            q = grid_codes(w[:, i : i + 1], scale, zero, scheme)
            value = grid_values(q, scale, zero, scheme)[:, 0]
            error = (w[:, i] - value) / u[i, i]  # eq. (2), with eq. (3) in U
            w[:, i:stop] -= error[:, None] * u[i, i:stop]
            codes[:, i], errors[:, i - start] = q[:, 0], error
        w[:, stop:] -= errors @ u[start:stop, stop:]  # eq. (4)
    scale, zero = columns.parameters()
    return in_place(codes, factor.order), scale, zero


def in_place(codes: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """The columns of codes [N, K], computed in `order`, back in the order of the row."""
    if order is None:
        return codes
    back = np.empty_like(codes)
    back[:, order] = codes
    return back


@dataclass
class ColumnGrids:
    """The grid of each column as the loop reaches it; collects the groups' parameters.

    moving: the size of groups whose parameters come from the current columns; None if `scale` and
    `zero` were fixed before the loop, over the whole row or by static groups.
    """

    scheme: Scheme
    rule: str
    name: str
    order: np.ndarray | None
    moving: int | None
    scale: list[np.ndarray]
    zero: list[np.ndarray | None]

    @classmethod
    def start(
        cls, w: np.ndarray, scheme: Scheme, rule: str, order: np.ndarray | None, name: str
    ) -> ColumnGrids:
        """Fix the parameters that come from the weights before any update."""
        moving = None if scheme.group_size == -1 or order is not None else scheme.group_size
        if moving:
            return cls(scheme, rule, name, order, moving, [], [])
        scale, zero = grid_parameters(w, scheme, rule, name)
        return cls(scheme, rule, name, order, moving, [scale], [zero])

    def at(self, i: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero point [N, 1] (or [1, 1]) of column i, w [N, K] being the current ones."""
        if self.moving:
            if i % self.moving == 0:
                self.add_group(w[:, i : i + self.moving])
            return self.scale[-1], self.zero[-1]
        return self.fixed(np.asarray([i]))

    def add_group(self, current: np.ndarray) -> None:
        """Take the parameters of the next group from its current columns [N, g]."""
        scale, zero = grid_parameters(current, self.scheme, self.rule, self.name)
        self.scale.append(scale)
        self.zero.append(zero)

    def fixed(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The fixed parameters of some columns, [N, C], or one column [N, 1] if all share it."""
        scale, zero = self.scale[0], self.zero[0]
        if scale.shape[1] == 1 or self.order is None:
            return scale, zero
        group = self.order[columns] // self.scheme.group_size
        return scale[:, group], None if zero is None else zero[:, group]

    def parameters(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All groups' parameters, [N, G]."""
        scale = np.concatenate(self.scale, axis=1)
        zeros = [zero for zero in self.zero if zero is not None]
        return scale, np.concatenate(zeros, axis=1) if zeros else None
