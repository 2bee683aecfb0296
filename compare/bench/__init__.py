"""Tokens per second, beside what the machine gives and what other engines reach.

sizes           at which sizes of model
random_model    weights for them
engines         who is measured
peers/          other engines, each in a process of its own
roofline        what the machine gives
speed           the measurement and its rows
"""
