"""What XLA computes by itself.

grids     INT8 codes, truly divided
linear    one linear over any weight
layers    norms, rotary, attention
"""
