"""A checkpoint ready to run.

chunks       a prompt in pieces of few sizes
rotary       cos and sin of every slot
slots        the cache's rows and slots
programs     compiled ahead, known by name and shapes
sampling     on the host, or handed to a program
scheduler    which rows are computed, how many tokens at a time
engine       logits, losses and generated tokens
"""
