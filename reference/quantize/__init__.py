"""Quantization: a float checkpoint in, a quantized one out.

recipe        what is done, by name: a method, a smoothing, schemes by pattern
spelling      how schemes are written down by a user
schemes       which scheme each linear of a model gets
observe       what linears read on real text, reduced to statistics: absmax by channel
runner        who carries the samples through a block: NumPy, or fast/quantize
smooth        SmoothQuant
methods/      how a weight is put on its grid
block         every linear of one block by its method
search        SmoothQuant's alpha by the error of each block's outputs
remarks       what a grid could not hold
checkpoint    block by block: read, observe, smooth, quantize, write
estimate      how long that will take, measured on the first block
"""
