"""The C++ kernels as JAX functions.

linear              a norm, the linears that read it, a residual
attention           rotation, cache write, softmax
moe                 routing and experts
sampling            logits to tokens
roofline            the bench's probe of the machine's peaks
instruction_sets    what a processor can do, and the compiler's flags for it
build               kernels/ compiled, once
library             the compiled kernels, loaded and registered
"""
