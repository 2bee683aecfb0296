"""Readers of config.json keys that several architectures share.

keys         config.json, read with types
attention    heads and windows
decoder      a decoder's usual keys, all at once
experts      mixtures of experts
rope         rotary positions and their scaling
alibi        ALiBi's slopes
"""
