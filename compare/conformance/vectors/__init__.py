"""The ops level as files: inputs, codes, scales and expected results, to run a kernel on.

cases     what is asked and what is right: grids, packing, linears, cache, smoothing, sampling
files     written to a directory with a manifest and a README; results read back and judged
linear    check_linear(f): a Python function held against the linears of these cases
"""
