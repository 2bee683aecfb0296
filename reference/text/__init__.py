"""From text to tokens, from logits to text, and how good a model is at it.

tokenizer_file    tokenizer.json, opened
added_tokens      tokens beside the vocabulary
tokenizer         text to tokens and back
sampling          logits to a token
generate          the loop, stop strings
evaluate          perplexity, KL, top-1
"""
