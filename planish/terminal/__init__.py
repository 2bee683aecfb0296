"""The command's side of the terminal.

flags         those that several verbs share
given         which flags were given: without effect, or contradicting each other
threads       how many compute
prompts       those of --prompt and --prompt_file
output        JSON, counts
progress      a bar, or lines in a log
streams       closed, full, without reader
interrupts    Ctrl-C and SIGTERM
"""
