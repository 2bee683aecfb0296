"""Level 1 as files: inputs, codes, scales and expected results to run a kernel on.

cases     the questions and the right answers: grids, packing, linears, cache, smoothing, sampling
linear    check_linear(f): a Python function against the linears of these cases
files     written to a directory with a manifest and a README; results read back and judged
"""
