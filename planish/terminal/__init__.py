"""The command's side of the terminal.

flags         those that several verbs share
given         which flags were given: without effect, or contradicting each other
threads       how many compute
output        JSON
progress      the bar
streams       closed, full, without reader
interrupts    Ctrl-C and SIGTERM
"""
