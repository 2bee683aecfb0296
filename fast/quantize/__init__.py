"""Quantization's heavy work, jitted, by the reference's names.

listener   a backend that observes the inputs of a block's linears
observe    the calibration's runner: runs samples through a block and collects statistics
grid       the grids with gradients, from the range of each group
differentiable  a backend with gradients, for training
training   train what a method learns of one block
signround  SignRound, trained
runtime    the runner and the jitted methods, as the pipeline takes them
"""
