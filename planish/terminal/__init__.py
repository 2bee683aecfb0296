"""The command's side of the terminal.

flags         the flags that several verbs share
extras        the packages of an extra
given         flags that have no effect, or contradict each other
threads       --threads
parallel      --parallel, and which of how many processes this one is
processors    the processors of each process that is launched
children      processes that are launched, watched and ended as one
prompts       read --prompt and --prompt_file
chat          --chat: prompts as messages in the chat template
sampling      --temperature and what else chooses the next token
tasks         read the items of --task
output        print JSON, format counts
rows          columns and lines of bench's tables
progress      a progress bar, or lines in a log
blocks        the progress of a quantization, in words or in JSON
sizes         sizes in bytes, as 2G
streams       standard streams that are closed, full, or without a reader
interrupts    Ctrl-C and SIGTERM
"""
