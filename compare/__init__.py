"""The judge: does the fast engine compute what the reference defines? (SPEC 9)

Conformance
    ops              level 1: every op on the same inputs, integers equal, floats within ulps
    kernels, attention    level 1 without a model: random linears, odd caches
    layers, mixtures level 2: every part of every block, fed with the reference's inputs
    parts, fused     level 2: one part on both sides; what one kernel call does besides a linear
    cached           level 2: the KV cache in each of its forms
    model            level 3: logits, prefill against decode, the last slot, greedy tokens
    trace, placed    the reference's way through a block; what the engine has on its device
    bounds, noise    how far floats, and two right implementations, may be apart
    check, report    one comparison; all of them, the first mismatch, one line of verdict
Quality and speed
    quality          what a recipe costs: perplexity, KL, top-1, bytes, tokens per second
    speed, limits    tokens per second beside what the machine gives
    contenders, peers/    who is measured: planish and other engines
    shapes, random_model  at which sizes, and weights for them

Three levels, because each is blind alone. A whole model can agree by luck where an op is wrong
in a rare case; an op can be right where the graph around it is not; and once two codes differ
at a tie, everything behind them differs a little, legitimately. So ops are compared on the same
inputs, layers are fed with the reference's inputs, and only the last level lets errors add up.
"""
