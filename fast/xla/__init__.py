"""The portable backend: what XLA computes by itself.

grids        INT8 codes, truly divided
linear       one linear over any weight
cache        its slots
attention    rotation, mask, softmax over the slots
moe          routing and experts
sampling     the likeliest token
backend      these as one
"""
