"""The embedded model: a small Llama trained on what every machine has, Python's own library.

MODEL is a Hugging Face directory, CALIBRATION a text of its training split, HELDOUT one that it
never saw. README.md beside this file is the model card, train.py made all three.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
CALIBRATION = Path(__file__).parent / "calibration.txt"
HELDOUT = Path(__file__).parent / "heldout.txt"
