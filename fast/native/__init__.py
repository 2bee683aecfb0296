"""The C++ kernels as JAX functions.

linear              linears, attention and sampling
moe                 routing and experts
instruction_sets    what a processor can do, and the compiler's flags for it
build               kernels/ compiled, once
library             the compiled kernels, loaded and registered
"""
