"""Quantization's heavy work, jitted, by the reference's names.

listener   a backend that observes the inputs of a block's linears
observe    the calibration's runner: runs samples through a block and collects statistics
gptq       GPTQ's column loop
runtime    the runner and the jitted methods, as the pipeline takes them
"""
