"""The definition: what planish computes, in NumPy, to be read from top to bottom.

The numbers
    grids                the INT8 and INT4 number grids
    packing              nibbles in bytes, codes in tiles
    linear               one linear layer over any weight
    tiles                a quantized weight into tiles and back
The transformer
    config               what a model's shape is          shapes   the shape of every tensor
    block                the weights of a model           rope     rotary positions, stretched
    layers               norms, attention, activations    stack    experts that lie together
    model                forward, prefill, decode_step
Quantization
    recipes              the schemes by name              rtn      round to nearest
    calibrate            absmax at every linear's input   smooth   SmoothQuant and its alpha
    ignore               which linears stay in float      remarks  what a grid could not hold
    quantize             checkpoint in, quantized checkpoint out
Files
    architectures/       one table for each model_type, and the readers of config keys
    keys                 config.json, read with types     names    what files call their tensors
    tensorfile           one safetensors file             shards   which files hold the tensors
    directory            a model directory, opened and checked
    checkpoint           its weights, read lazily         floats   float tensors, finite
    quantized            codes, scales and zero points    quantization_config  what was done
    writer, placing      a directory or a file, written whole and where it was asked to go
Text
    tokenizer_file, added_tokens, tokenizer               text to tokens and back
    sampling             logits to a token                generate the loop, stop strings
    evaluate             perplexity, KL, top-1            engine   what the command asks of both
Everywhere
    errors               one family of errors, and notices
    memory               memory that is not there, as one of them

Nothing here imports jax.
"""
