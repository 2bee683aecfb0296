"""Quantize the embedded model to 4 bits and let it write: python examples/quantize_and_write.py"""

import tempfile
from pathlib import Path

import planish
from planish import pocket

with tempfile.TemporaryDirectory() as directory:
    out = Path(directory, "pocket-w4a8")
    planish.quantize(pocket.MODEL, out, recipe="W4A8", group_size=32)
    model = planish.load(out)
    prompt = "def read_config(path):"
    print(prompt, end="")
    for piece in model.generate(prompt, max_new_tokens=48, stream=True):
        print(piece, end="", flush=True)
    print()
