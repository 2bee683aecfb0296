"""The definition: what planish computes, in NumPy, to be read from top to bottom.

    grids      the INT8 and INT4 number grids            packing    nibbles in bytes
    linear     one linear layer over any weight           layers     norms, rotary, attention, MLP
    model      the transformer: forward, prefill, decode  config     what a model's shape is
    checkpoint a Hugging Face directory, read lazily      writer     the same directory, written whole or not at all
    calibrate  absmax at the input of every linear        smooth     SmoothQuant's folding, and the search for alpha
    recipes    the schemes by name                        quantize   checkpoint in, quantized checkpoint out
    sampling   logits to a token                          evaluate   perplexity, KL, top-1 agreement

Nothing here imports jax.
"""
