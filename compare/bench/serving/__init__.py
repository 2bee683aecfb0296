"""Servers under load: tokens per second, the wait for the first token, the gaps between tokens.

What is measured is what a client sees over HTTP, in another process than the server's, so that
planish and its peers are measured in one way and none is imported.

client     one streamed completion, and when its pieces came
crowd      several clients at the same time
servers    planish serve and peers' servers, each in its own process
load       the measurement and its rows
"""
