"""The transformer in JAX.

weights        the reference's weights as pytrees, on the device
cache          keys and values in fixed slots
backend        the functions that the transformer needs of a backend
layers         norms and activations
embedding      rows of an embedding, of floats or of codes
losses         of logits: -log p of the next token, and whether it is the likeliest
transformer    prefill, decode, losses
"""
