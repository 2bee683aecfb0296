"""The definition: what planish computes, in NumPy, to be read from top to bottom.

    grids       the INT8 and INT4 number grids         packing   nibbles in bytes, codes in tiles
    linear      one linear layer over any weight       tiles     a weight into tiles and back
    model       forward, prefill, decode_step          layers    norms, rotary, attention
    directory   a model directory, opened and checked  config    what a model's shape is
    checkpoint  its weights, read lazily               quantized those on a grid, in either layout
    writer      a directory, written whole or not      tokenizer text to tokens and back
    tokenizer_file  its file and its errors            added_tokens  that only other files have
    calibrate   absmax at every linear's input         smooth    SmoothQuant and its alpha
    recipes     the schemes by name                    quantize  checkpoint in, quantized one out
    sampling    logits to a token                      evaluate  perplexity, KL, top-1 agreement
    errors      the one family of errors               memory    memory that is not there, as one

Nothing here imports jax.
"""
