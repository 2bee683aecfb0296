"""The transformer in JAX.

weights        the reference's types as pytrees, on the device
cache          keys and values, fixed slots
transformer    prefill, decode, losses
moe            a mixture of experts
"""
