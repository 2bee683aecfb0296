"""The judge: does the fast engine compute what the reference defines? (SPEC 9)

    ops      level 1: every op on the same inputs, integers equal, floats within ulps
    layers   level 2: every part of every block, fed with the reference's inputs
    model    level 3: logits, prefill against decode, the last slot of the cache, greedy tokens
    noise    how far two right implementations may part at level 3, measured
    report   the three together, the first mismatch spelled out, one line of verdict
    quality  what a recipe costs: perplexity, KL, top-1, bytes, tokens per second
    speed    tokens per second beside the limits of the machine

Three levels, because each is blind alone. A whole model can agree by luck where an op is wrong
in a rare case; an op can be right where the graph around it is not; and once two codes differ
at a tie, everything behind them differs a little, legitimately. So ops are compared on the same
inputs, layers are fed with the reference's inputs, and only the last level lets errors add up.
"""
