"""The transformer: one forward pass, driven by a ModelConfig; nothing here knows files or recipes.

config         the shape of a model, and of its rotary positions
shapes         the shape of every tensor
weights        the weights of a block and of a model
experts        experts stacked along one axis
folds          which norm feeds which linears
rope           rotary positions and their scaling
layers         norms, attention, activation functions
transformer    forward, prefill, decode_step
"""
