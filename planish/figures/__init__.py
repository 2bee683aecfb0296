"""The pictures of README and docs/, one to a file, drawn from the embedded model.

    python -m planish.figures docs/images           all of them, in about three minutes
    python -m planish.figures docs/images fold      some, by name

How it works
    smoothing    activations and weights before and after smoothing, on one scale
    absmax       the largest magnitude of each channel, before and after
    fold         where s goes: into the norm and the linears that read it
    flow         from a checkpoint to text
    group        one W4A8 group, worked through
    alpha        the error of a linear against alpha
What it costs
    size         quality against size, every recipe
    trail        a search by quantize --method auto: size against loss, the cost of each linear
Shared by the pictures
    collect      input and weight of a linear, before and after smoothing
    drawing      canvas, colours, boxes and arrows

Needs matplotlib: pip install planish[plot].
"""
