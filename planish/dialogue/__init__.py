"""planish chat: a conversation with a model, and the terminal that it is typed in.

messages    the conversation: system message and turns
saved       conversations in JSON files
settings    what /set shows and changes
answers     the model's next message, as it grows, and Ctrl-C
talk        a message to its answer; a full context
commands    /help, /undo and the others
history     where typed lines are kept
typing      lines from prompt_toolkit, from a plain terminal or from a pipe
loop        read, answer, print, until Ctrl-D
"""
