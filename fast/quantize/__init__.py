"""Quantization's heavy work, jitted, by the reference's names.

listener   a backend that hears what a block's linears read
observe    the calibration's runner: samples through a block, what the linears read on the way
"""
