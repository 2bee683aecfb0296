"""The definition stands alone: NumPy and file formats, never jax."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_importing_all_of_reference_never_imports_jax():
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in sorted((ROOT / "reference").rglob("*.py"))
    ]
    assert "reference.architectures.llama" in modules and len(modules) > 20
    program = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*sorted({{name.partition('.')[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"reference", "numpy", "safetensors"} <= loaded
    assert not loaded & {"jax", "jaxlib", "flax", "torch", "fast", "compare", "planish", "absl"}
