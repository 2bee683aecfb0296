"""The pictures of README and docs/, one to a file, drawn from the embedded model.

    python -m planish.figures docs/images           all of them, in about three minutes
    python -m planish.figures docs/images fold      some, by name

The pictures of what happens
    smoothing    activations and weights before and after, on one scale
    absmax       the largest value of each channel, before and after
    fold         where s goes: into the norm and the linears that read it
    flow         from a checkpoint to text
    group        one W4A8 group, worked through
    alpha        the error of a linear by alpha
and of what it costs
    size         quality against size, every recipe
What they share
    collect      what a layer reads and multiplies, before and after smoothing
    drawing      the canvas, the colours, boxes and arrows

Needs matplotlib: pip install planish[plot].
"""
