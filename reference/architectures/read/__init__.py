"""Readers of config.json keys that several architectures share.

keys         typed access to an untrusted config.json
attention    heads and sliding windows
rope         rotary position embeddings and their scaling
alibi        the slopes of ALiBi
experts      mixtures of experts
decoder      the usual keys of decoders since Llama, all at once
"""
