"""The engine: what reference/ defines, jitted by JAX, as fast as the machine allows.

    grids            INT8 codes, truly divided          linear   one linear over any weight
    layers           norms, rotary, attention           experts  a mixture of experts
    cache            keys and values, fixed slots       model    prefill, decode, losses
    native, native_experts    the C++ kernels as JAX functions (kernels/)
    weights          the reference's types as pytrees, on the device
    device           on the CPU, whatever else jax could find
    engine           a checkpoint ready to run

A function that the reference has too goes by its name and computes the same numbers.
"""
