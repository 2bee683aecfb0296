"""What a recipe costs.

recipes    perplexity, KL, top-1, bytes, tokens per second
"""
