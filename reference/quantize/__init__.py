"""Quantization: a float checkpoint in, a quantized one out.

recipe        a method, a smoothing, and schemes by pattern, under one name
spelling      how a user writes schemes: by name, by pattern, in a JSON file
patterns      whether a pattern of names is valid, and ends in time
schemes       which scheme each linear of a model gets
observe       statistics of the inputs of linears on real text: absmax of each channel
hidden        hidden states, in memory up to a budget, the rest on the disk
runner        what runs the samples through a block: NumPy, or fast/quantize
runtime       the runner, faster steps of methods, and what shows the progress
fold          move a scale from a norm or a linear into the linears that read it
smooth        SmoothQuant
methods/      how a weight becomes codes, one method a file
settings      what the methods leave open
job           what a method gets of one block
grid          parameters, codes and values of one weight under its scheme
clip          ranges of static activation scales, by least error
block         quantize one block by the recipe's methods, one after another
search        choose SmoothQuant's alpha by the error of each block's outputs
report        what is said of each finished block
remarks       count what a grid could not represent
output        the tensors of a block in the directory, and a finished block back from them
resume        what a later run must know to go on after the last finished block
ahead         blocks that need nothing of each other, on threads
checkpoint    for each block: read, observe, smooth, quantize, write
footprint     the memory of a method's own work on a block
estimate      how long that takes and how much memory, measured on the first block
"""
