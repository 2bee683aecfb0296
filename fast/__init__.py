"""The engine: what reference/ defines, jitted by JAX, as fast as the machine allows.

    model/       the transformer, its weights and its cache; a backend computes
    xla/         the portable backend
    native/      the backend of C++ kernels
    quantize/    the calibration's runner
    session/     a checkpoint ready to run
    parallel/    one model on several processes
    placement    the device of arrays and programs: the CPU

A function with the reference's name takes the reference's arguments first and computes the same
numbers; tests/fast/test_mirror.py holds the names.
"""
