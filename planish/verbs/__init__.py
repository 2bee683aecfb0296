"""The verbs of the command: add_flags says what one takes, run does it.

generate      text from a prompt
requests      generate --requests: a file of requests into a file of answers
serve         the same over HTTP, for many at a time
chat          a conversation
quantize      a float checkpoint into a quantized one
convert       a model in another program's format, or in floats
search        quantize --method auto: its flags and its table
perplexity    how well a model predicts a text
quality       what each recipe costs a model
evaluate      how often a model answers right
logits        of every position, as an array
compare       do both engines agree?
vectors       cases for a kernel of yours, and its results
inspect       what a model and this machine are
lint          what is wrong in a quantized checkpoint
bench         tokens per second
serving       bench --serve: a server with several clients at once
launch        a verb on several processes
plan          which models fit which machines
"""
