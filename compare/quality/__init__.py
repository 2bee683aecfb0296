"""What a recipe costs, on a text and in bytes: `planish quality` and the demo.

names      W4A8-g64-minmax: a recipe in one word
measure    perplexity, KL and top-1 beside the float model's, bytes, tokens per second
table      the rows as a table, and the meaning of each column
"""
