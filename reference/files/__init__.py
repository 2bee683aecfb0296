"""Reading and writing model directories. Files are untrusted: everything that is read is checked.

safetensors    read and write one safetensors file
shards         which files contain the tensors
names          the names that files give their tensors
entries        find a tensor by name, check its type and shape
foreign        what other programs wrote, as planish's tensors
checkpoint     an opened directory: config, names and schemes, no tensors
required       which tensors a model needs and may have
opening        open a directory or a GGUF file and check it
fused          q, k and v, or gate and up, in one tensor
floats         read float tensors, check that they are finite
formats/       how quantized linears are stored
load           read the weights, one block at a time
blocks         write a block in planish's format
placing        put a finished file or directory in place, replacing nothing without being asked
partial        the finished pieces of a directory that is not complete
writer         write a directory, whole or not at all
export/        write other programs' formats
"""
