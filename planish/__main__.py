"""planish VERB ...  (also python -m planish VERB)"""

import signal

# Until a verb runs there is nothing to undo, so Ctrl-C kills the process silently. In the middle of
# an import KeyboardInterrupt might be lost or, in a compiled module, crash.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from planish.command import main

if __name__ == "__main__":
    main()
