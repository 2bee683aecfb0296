"""The definition stands alone: NumPy and file formats, never jax."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_importing_all_of_reference_never_imports_jax():
    modules = [
        ".".join(("planish", *file.relative_to(ROOT).with_suffix("").parts))
        for file in sorted((ROOT / "reference").rglob("*.py"))
    ]
    assert "planish.reference.architectures.llama" in modules and len(modules) > 20
    program = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*sorted({{".".join(name.split(".")[:2]) for name in sys.modules}}))
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
    assert {"planish.reference", "numpy", "safetensors"} <= loaded
    assert not loaded & {"jax", "jaxlib", "flax", "torch", "absl"}
    assert {name for name in loaded if name.startswith("planish.")} == {"planish.reference"}
