"""The definition: what planish computes, in NumPy, to be read from top to bottom.

The numbers, which a kernel's author reads first
    grids             the INT8 and INT4 number grids
    packing           nibbles in bytes, codes in tiles
    scheme            how one linear is quantized
    quantized         a quantized weight, and its layouts
    linear            one linear layer over any weight
Then
    model/            the transformer: config, weights, forward pass
    quantize/         recipes, SmoothQuant, round to nearest
    architectures/    one table for each model_type
    text/             tokens, sampling, perplexity
    files/            model directories, read and written
    engine            a directory ready to run, as the command asks of both engines
Everywhere
    json              a JSON file, which nobody vouches for
    progress          how far a long loop is
    errors            one family of errors, and notices
    memory            memory that is not there, as one of them

Nothing here imports jax. SmoothQuant in six of these files, for a student: docs/reading-path.md.
"""
