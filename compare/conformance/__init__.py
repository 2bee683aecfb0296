"""Does an engine compute what the reference defines? (SPEC 9)

compare/subject.py says what an engine is asked. In reading order:

check            one comparison
tolerances       how much a linear's outputs may differ
perturbation     how much two correct implementations of a model differ
ops              level 1: every op on the same inputs, integers equal, floats within ulps
kernels          level 1 without a model: random linears
attention        level 1 without a model: random caches
trace            every intermediate result of the reference in one block
routing          routers near a tie, where more than one choice of experts is right
block_case       one block: the reference's results and the subject's modules
module_checks    one module: its output, and the codes made from it
fused_calls      what one kernel call does besides a linear
int8_attention   which codes of INT8 attention may differ, and what they move
kv_cache         level 2: the KV cache in each of its forms
moe              level 2: mixtures of experts
layers           level 2: every module of every block, given the reference's inputs
transformer      level 3: logits, prefill against decode, the last slot, greedy tokens
verdict          the table, the first mismatch, one line
report           all three levels in one run
fast_placement   weights and caches on their way into planish's engine and back
fast_engine      planish's engine as a subject
hugging_face     a model of transformers as a subject
vectors/         level 1 as files, for kernels written elsewhere
"""
