"""The native backend: the C++ kernels as JAX functions.

instruction_sets    what a processor can do, and the compiler's flags for it
build               kernels/ compiled, once
library             the compiled kernels, loaded and registered
linear              a norm, the linears that read it, a residual
cache               its slots, in tiles
attention           rotation, cache write, softmax
moe                 routing and experts
sampling            logits to tokens
backend             these as one
roofline            the bench's probe of the machine's peaks
"""
