"""What a recipe costs, on a text, on tasks and in bytes: `planish quality`, `evaluate`, the demo.

names      W4A8-g64-minmax: a recipe in one word
measure    perplexity, KL and top-1 beside the float model's, bytes, tokens per second
tasks      multiple choice and last words: accuracies, and paired differences
table      the rows as a table, and the meaning of each column
"""
