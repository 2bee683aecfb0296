"""Does the fast engine compute what the reference defines? (SPEC 9)

check            one comparison
tolerances       how far floats may be apart
perturbation     how far two right implementations are apart
ops              level 1: every op on the same inputs, integers equal, floats within ulps
kernels          level 1 without a model: random linears
attention        level 1 without a model: odd caches
trace            the reference's way through a block
on_device        what the engine has on its device
module_checks    one module on both sides
fused_calls      what one kernel call does besides a linear
layers           level 2: every module of every block, fed with the reference's inputs
moe              level 2: mixtures of experts
kv_cache         level 2: the KV cache in each of its forms
transformer      level 3: logits, prefill against decode, the last slot, greedy tokens
report           all of them, the first mismatch, one line of verdict
"""
