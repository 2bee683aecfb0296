"""Model directories: everything that reads or writes bytes of them, and distrusts what it reads.

safetensors    one safetensors file
shards         which files hold the tensors
names          what files call their tensors
entries        tensors by name, of the type and shape that they must have
checkpoint     a directory, opened and checked, no tensor read yet
floats         float tensors, finite
formats/       how quantized linears are stored
load           the weights, one block at a time
placing        a path, filled whole and never replaced unasked
writer         a directory, written whole
"""
