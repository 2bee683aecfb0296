"""A checkpoint ready to run.

chunks       a prompt in chunks of few sizes
rotary       cos and sin of every slot
slots        the rows and slots of the cache
programs     programs compiled ahead of time, identified by name and shapes
placing      what an engine asks of the devices that it runs on
sampling     the arrays for sampling on the device
scheduler    which rows are computed, and how many tokens at a time
engine       a checkpoint's logits, losses and generated tokens
pages        a cache made of pages, and the prefixes that they hold
rows         the rows of a session, and the tokens of a step
filling      which prompts' tokens a step computes
paged        the compiled programs over that cache
exactness    which models' bits do not depend on the batch
answers      from logits to new tokens, and the event that says so
lookup       guesses of the next tokens from the text itself
batching     a session: many requests in the same steps, each as if alone
one_by_one   a session for all other engines
opening      chooses between the two
"""
