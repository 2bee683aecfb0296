"""Does an engine compute what the reference defines? (SPEC 9)

subject.py, one level up, says what an engine is asked. In reading order:

check            one comparison
tolerances       how far floats may be apart
perturbation     how far two right implementations are apart
ops              level 1: every op on the same inputs, integers equal, floats within ulps
kernels          level 1 without a model: random linears
attention        level 1 without a model: odd caches
routing          routers near a tie, where more than one choice of experts is right
trace            the reference's way through a block
block_case       one block on both sides
module_checks    one module on both sides
fused_calls      what one kernel call does besides a linear
layers           level 2: every module of every block, fed with the reference's inputs
moe              level 2: mixtures of experts
kv_cache         level 2: the KV cache in each of its forms
transformer      level 3: logits, prefill against decode, the last slot, greedy tokens
report           all of them, along the reference's way through the model
verdict          the table, the first mismatch, one line
fast_engine      planish's engine as a subject: all that is known of fast/
hugging_face     a model of transformers as a subject
vectors/         level 1 as files, for kernels that are written elsewhere
"""
