"""The transformer: one forward pass, driven by a ModelConfig; nothing here knows files or recipes.

config         the features of a model
shapes         the shape of every tensor, from the config alone
rope           rotary position embeddings and their scaling
layers         norms, attention, activation functions
attention      INT8 attention, and keys and values as codes
weights        the weights of a block and of a model
embedding      rows of an embedding, of floats or of codes
experts        the experts of a layer, stacked along one axis
folds          where a scale can move: from a norm or a linear into those that read it
transformer    forward, prefill, decode_step
"""
