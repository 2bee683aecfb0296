"""The embedded model: a small Llama trained on Python's standard library.

MODEL is a Hugging Face directory, CALIBRATION a text of its training split, HELDOUT a text that it
never saw; train.py made all three. README.md in this folder is the model card.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
CALIBRATION = Path(__file__).parent / "calibration.txt"
HELDOUT = Path(__file__).parent / "heldout.txt"
