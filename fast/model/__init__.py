"""The transformer in JAX.

weights        the reference's types as pytrees, on the device
cache          keys and values, fixed slots
backend        what the transformer asks of who computes it
layers         norms and activations
transformer    prefill, decode, losses
"""
