"""The native backend: the C++ kernels as JAX functions.

instruction_sets    the instruction sets, and which of them this processor has
build               compiles kernels/ once and keeps the libraries
library             loads the compiled kernels and registers them with XLA
linear              a norm, the linears that read it and a residual in one call
dense               the same for one linear with float weights
norm                a norm that is not part of such a call
cache               keys and values in tiles
attention           rotation, cache write and softmax in one call
moe                 routing and experts
sampling            logits to tokens
backend             these modules as one backend
roofline            peak rates of the machine, for the bench
"""
