"""The command: one file per verb, and the only room where flags are read."""
