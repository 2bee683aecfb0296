"""The engine: the same functions as reference/, jitted by JAX, as fast as the machine allows.

    linear  one linear over any weight                     layers  norms, rotary, attention, MLP
    native  the C++ kernels as JAX functions (kernels/)    grids   INT8 codes, truly divided
    model   prefill and decode_step over a donated cache   cache   keys and values, fixed slots
    weights the reference's types as pytrees, on a device  engine  a checkpoint ready to run

Names and argument order are the reference's, so that the two read side by side.
"""
