"""Quantization: a float checkpoint in, a quantized one out.

recipe        what is done, by name: a method, a smoothing, schemes by pattern
spelling      how schemes are written down by a user
schemes       which scheme each linear of a model gets
observe       absmax at every linear's input
smooth        SmoothQuant and its search for alpha
methods/      how a weight is put on its grid
remarks       what a grid could not hold
checkpoint    block by block: read, observe, smooth, quantize, write
"""
