"""The portable backend: XLA alone, without the C++ kernels.

grids        INT8 codes, with true divisions
linear       one linear, float or quantized
products     which library multiplies INT8 for XLA here
cache        keys and values in slots
attention    rotation, cache write, mask and softmax
moe          routing and experts
sampling     the most likely token
backend      these modules as one backend
"""
