"""The judge: does the fast engine compute what the reference defines? (SPEC 9)

    ops      level 1: every op on the same inputs, integers equal, floats within ulps
    kernels, attention    level 1 without a model: random linears, odd caches
    layers   level 2: every part of every block, fed with the reference's inputs
    fused    level 2: what one kernel call does besides a linear
    model    level 3: logits, prefill against decode, the last slot of the cache, greedy tokens
    cached   reading and judging the KV cache in each of its forms
    placed   what the engine has on its device        bounds   how far floats may be apart
    noise    how far two right implementations may part at level 3, measured
    report   the three together, the first mismatch spelled out, one line of verdict
    quality  what a recipe costs: perplexity, KL, top-1, bytes, tokens per second
    speed    tokens per second of planish and its peers, beside the limits of the machine
    contenders, peers/    who is measured             limits   what the machine gives
    shapes, random_model  at which sizes, and weights for them

Three levels, because each is blind alone. A whole model can agree by luck where an op is wrong
in a rare case; an op can be right where the graph around it is not; and once two codes differ
at a tie, everything behind them differs a little, legitimately. So ops are compared on the same
inputs, layers are fed with the reference's inputs, and only the last level lets errors add up.
"""
