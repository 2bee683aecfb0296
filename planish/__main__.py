"""planish VERB ...  (also python -m planish VERB)"""

import signal

# Until a verb runs there is nothing to undo: Ctrl-C ends the process without a word, also in the
# middle of an import, where an exception may be lost or, in compiled modules, end in a crash.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from planish.command import main

if __name__ == "__main__":
    main()
