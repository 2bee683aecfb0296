"""A checkpoint ready to run.

engine    weights on the device, programs compiled once, a cache handed on
"""
