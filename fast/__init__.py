"""The engine: what reference/ defines, jitted by JAX, as fast as the machine allows.

    model/       the transformer, its weights and its cache
    xla/         linears, norms and attention by XLA
    native/      the same by C++ kernels
    quantize/    the calibration's runner
    session/     a checkpoint ready to run
    placement    on the CPU, whatever else jax could find

A function that the reference has too goes by its name and computes the same numbers.
"""
