"""Tokens per second of planish and of other engines, beside the machine's roofline.

sizes           the sizes of model that are measured
random_model    random weights for them
timing          the questions that a timed engine answers
workload        what it is timed on: pp512, tg128, ...
peers/          other engines, each in its own process
serving/        servers under load, beside other servers
engines         the engines of a run: planish with each recipe, and peers
machine         the machine's peak rates
roofline        the bound that they set on a model's speed
gathers         how long a gather between processes takes
orders          what an order of inputs adds to a linear
planning        bytes and speed of a model on several machines, before anything is run
speed           the measurement and its rows
"""
