"""The definition: what planish computes, in NumPy, to be read from top to bottom.

The numbers, which a kernel author reads first
    grids             the INT8 and INT4 number grids
    packing           two 4-bit codes in a byte, codes in tiles
    scheme            how one linear is quantized
    quantized         a quantized weight and its layouts
    linear            one linear layer, in floats or on codes
Then
    model/            the transformer: config, weights, forward pass
    quantize/         recipes, SmoothQuant, the methods that choose codes
    architectures/    one table for each model_type
    text/             tokens, sampling, perplexity
    files/            model directories, read and written
    engine            a model in memory, with the interface of the fast engine
Everywhere
    reading           a whole file of limited size, never a pipe or a device
    json              an untrusted JSON file, read as one object
    gguf              an untrusted GGUF file: its keys, and where its tensors are
    progress          the progress bar that a caller may pass in
    errors            the family of typed errors, and notices
    overflow          floats that are too large, without warnings
    memory            a lack of memory, as one of these errors

Nothing here imports jax. SmoothQuant in six of these files, for a student: docs/reading-path.md.
"""
