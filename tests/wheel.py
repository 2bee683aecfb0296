"""The wheel and the source distribution as users install them: make wheel, not pytest, runs this.

Both are built from a copy of the checkout, and a wheel again from the unpacked source
distribution; each holds every file of the packages. The wheel is installed into a fresh
environment, which sees the packages of this one but not the checkout. There, outside the
repository and with nothing but its dependencies to import, planish must compile its native
kernels, inspect, quantize and generate.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("reference", "fast", "compare", "pocket")  # installed as planish.reference, ...
NOT_SOURCE = (".*", "build", "dist", "demo", "*.egg-info", "__pycache__")
BUILD = "import sys, setuptools.build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"
WHERE = (
    "from planish import fast, pocket; import planish.fast.native.build;"
    " print(fast.native.build.SOURCES, pocket.MODEL, sep='\\n')"
)
# planish as where only its dependencies and theirs are installed: other imports fail
ALONE = """
import re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

needed, queue = set(), ["planish"]
while queue:
    if (name := queue.pop()) not in needed:
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # for another system or Python
            continue
        needed.add(name)
        names = (re.match(r"[\\w.-]+", line)[0] for line in lines if "extra ==" not in line)
        queue += map(normal, names)
for module, owners in packages_distributions().items():
    if not needed & set(map(normal, owners)):
        sys.modules[module] = None
assert sys.modules["pytest"] is None and "numpy" in needed
from planish.command import main
main()
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="planish-wheel-") as name:
        place = Path(name).resolve()
        source = place / "source"
        shutil.copytree(ROOT, source, ignore=left_out)
        expected = files_of(source)
        wheel = build("wheel", source, place / "wheel")
        sdist = build("sdist", source, place / "sdist")
        shutil.unpack_archive(sdist, place / "unpacked")
        (unpacked,) = (place / "unpacked").iterdir()
        again = build("wheel", unpacked, place / "again")
        for built in (wheel, again):
            names = set(zipfile.ZipFile(built).namelist())
            missing = sorted(expected - names)
            assert not missing, f"{built.parent.name}: without {missing}"
            tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
            assert tops == {"planish"}, f"{built.parent.name}: owns {sorted(tops)}"
        check_installed(install(wheel, place / "environment"), place)
    print("wheel: holds every file, and runs native kernels outside the repository")
    return 0


def left_out(folder: str, names: list[str]) -> set[str]:
    """What is no source; pocket/work is what the training writes, the kernels' work is source."""
    training = {"work"} if Path(folder) == ROOT / "pocket" else set()
    return shutil.ignore_patterns(*NOT_SOURCE)(folder, names) | training & set(names)


def files_of(source: Path) -> set[str]:
    """Every file of the package by its installed name; those of the kernels are C++."""
    found = {path for room in (*ROOMS, "planish") for path in (source / room).rglob("*")}
    names = {path.relative_to(source).as_posix() for path in found if path.is_file()}
    assert {"fast/native/kernels/ffi.cc", "fast/native/kernels/table.h"} <= names
    return {name if name.startswith("planish/") else f"planish/{name}" for name in names}


def run(*words: object, cwd: Path, **more: str) -> str:
    """What a command prints; its errors are shown where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(word) for word in words]
    done = subprocess.run(
        command, cwd=cwd, env=environment | more, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """A `wheel` or an `sdist`, by the backend that pyproject.toml names."""
    target.mkdir()
    run(sys.executable, "-c", BUILD, kind, target, cwd=source)
    (built,) = target.iterdir()
    return built


def install(wheel: Path, target: Path) -> Path:
    """The python of a fresh environment: the wheel, and behind it the packages of this one."""
    venv.create(target)
    python = target / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", ask, cwd=target).strip())
    flags = ("--no-deps", "--disable-pip-version-check", "--target", site)
    run(sys.executable, "-m", "pip", "install", *flags, wheel, cwd=target)
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site / "behind.pth").write_text("\n".join(packages))
    return python


def check_installed(python: Path, place: Path) -> None:
    """Whose code runs; that its kernels are native and compute what XLA does."""
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    more = {"cwd": elsewhere, "XDG_CACHE_HOME": str(place / "cache")}
    kernels, model = run(python, "-c", WHERE, **more).split()
    assert kernels.startswith(str(python.parents[1])), kernels
    planish = (python, "-c", ALONE)
    words = ("--model", model, "--prompt", "def ", "--max_new_tokens", 8)
    text = run(*planish, "generate", *words, "--kernels", "native", **more)
    assert text == run(*planish, "generate", *words, "--kernels", "xla", **more)
    facts = json.loads(run(*planish, "inspect", "--model", model, "--json", **more))["kernels"]
    quantized = place / "quantized"
    run(*planish, "quantize", "--model", model, "--out", quantized, "--recipe", "W4A8", **more)
    words = ("--model", quantized, "--prompt", "def ", "--max_new_tokens", 8)
    assert len(run(*planish, "generate", *words, **more)) > 8
    assert facts["use"].startswith("native ") and "not yet" not in facts["why"], facts
    assert not list(elsewhere.iterdir()), "something was written where the user stands"


if __name__ == "__main__":
    sys.exit(main())
