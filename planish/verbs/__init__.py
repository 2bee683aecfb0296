"""One file for each verb of the command: add_flags says what it takes, run does it."""
