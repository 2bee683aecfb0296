"""The portable backend: XLA alone, without the C++ kernels.

grids        INT8 codes, with true divisions
linear       one linear, float or quantized
products     which library multiplies INT8 for XLA here
cache        keys and values in slots
scores       mask, biases and caps of attention scores
codes        INT8 attention: both products on codes
attention    rotation, cache write and softmax
moe          routing and experts
sampling     the most likely token
backend      these modules as one backend
"""
