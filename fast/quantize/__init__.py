"""Quantization's heavy work, jitted, by the reference's names.

observe    the calibration's runner: samples through a block, what the linears read on the way
"""
