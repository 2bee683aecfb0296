"""The definition: what planish computes, in NumPy, to be read from top to bottom.

    grids       the INT8 and INT4 number grids         packing   nibbles in bytes
    linear      one linear layer over any weight       layers    norms, rotary, attention
    model       forward, prefill, decode_step          config    what a model's shape is
    checkpoint  a Hugging Face directory, read lazily  writer    one written, whole or not at all
    calibrate   absmax at every linear's input         smooth    SmoothQuant and its alpha
    recipes     the schemes by name                    quantize  checkpoint in, quantized one out
    sampling    logits to a token                      evaluate  perplexity, KL, top-1 agreement

Nothing here imports jax.
"""
