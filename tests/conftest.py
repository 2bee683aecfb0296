"""What every room's tests share: tiny models, strict jax, one thread per test process.

The environment is set here because jax and NumPy read it when they are first imported, and
because commands run as subprocesses inherit it. Warnings are errors (pyproject.toml).
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # processes share the cores, threads would fight
os.environ["JAX_PLATFORMS"] = "cpu"  # also where jax would find a GPU
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # private_cache keeps programs
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from planish.program_cache import distrust
from tests.models import make_llama as write_llama

MOST_RESIDENT, GROWTH = 1.5e9, 0.3e9  # bytes of one test process; from one clearing to the next


def pytest_addoption(parser: pytest.Parser) -> None:
    for flag, cases in (
        ("--whole", "the larger share of the cases of tests marked matrix or whole"),
        ("--rest", "what --whole has and a run without flags leaves out, and what is marked again"),
        ("--every", "every case of every test: hours"),
        ("--optimized", "what is marked optimized, with programs as XLA makes them for users"),
    ):
        parser.addoption(flag, action="store_true", help=cases)


def has_every_set(config: pytest.Config) -> bool:
    """Whether kernels are compiled for every instruction set, not only for the best."""
    return any(config.getoption(flag) for flag in ("--whole", "--rest", "--every"))


def pytest_configure(config: pytest.Config) -> None:
    """Programs are compiled with few optimizations, in a quarter of the time; by workers and the
    commands that they run, too. --optimized has them as users do. A shell's background job ignores
    Ctrl-C, and so would the commands of tests that press it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.getoption("--optimized"):
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test marked matrix(n, m) the sample has the first case and every n-th after it, and
    --whole one in m as well; of one that is marked whole(m) the sample has none. Without m --whole
    has all. --rest has what --whole adds to the sample, and again what is marked so. --optimized
    has those marked optimized(n) only, and of their cases one in n. --every has every case."""
    if config.getoption("--every"):
        return
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        test = item.nodeid.partition("[")[0]
        if is_chosen(item, seen[test]):
            kept.append(item)
        seen[test] += 1
    dropped = set(items).difference(kept)
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = kept


def is_chosen(item: pytest.Item, case: int) -> bool:
    """Whether this run has the test's case, which is counted from 0."""
    if item.config.getoption("--optimized"):
        return one_in(item, "optimized", case, absent=False)
    sampled = item.get_closest_marker("whole") is None and one_in(item, "matrix", case)
    added = one_in(item, "whole", case) and one_in(item, "matrix", case, argument=1)
    if item.config.getoption("--whole"):
        return sampled or added
    if item.config.getoption("--rest"):
        return (added or sampled) if item.get_closest_marker("again") else added and not sampled
    return sampled


def one_in(item: pytest.Item, name: str, case: int, argument: int = 0, absent: bool = True) -> bool:
    """Whether the case is one of those that the number in the test's mark leaves: all without a
    number, as `absent` says without the mark."""
    mark = item.get_closest_marker(name)
    if mark is None:
        return absent
    return case % (mark.args[argument] if len(mark.args) > argument else 1) == 0


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A failed test is named at once: a run that is stopped prints no summary."""
    if not report.failed:
        return None
    category = "failed" if report.when == "call" else "error"
    return category, f"\n{category.upper()} {report.nodeid}\n", category.upper()


def pytest_collectstart() -> None:
    """What is imported and collected stays to the end: looking for garbage there takes seconds."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Garbage is looked for less often than by default, and never in what was collected."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def resident_limit() -> list[float]:
    """The bytes from which bounded_memory clears, one number."""
    return [MOST_RESIDENT]


@pytest.fixture(autouse=True)
def bounded_memory(resident_limit: list[float]) -> Iterator[None]:
    """Compiled programs, of which hundreds of models leave gigabytes, go when they are too many.

    What is freed does not always go back to the system, and to clear after every test would compile
    for every test; so the limit rises with what remains.
    """
    yield
    jax = sys.modules.get("jax")
    if jax is not None and resident_bytes() > resident_limit[0]:
        jax.clear_caches()
        gc.collect()
        resident_limit[0] = max(MOST_RESIDENT, resident_bytes() + GROWTH)


def resident_bytes() -> int:
    """What this process has in memory; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this test run, the same one for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def private_cache(request: pytest.FixtureRequest, run_directory: Path) -> Path:
    """Where compiled programs and kernels go: never to the user's cache.

    XLA's compiler takes most of the tests' time. So this is pytest's own cache directory, which
    the processes of a run share and the next run finds, unless others can write there.
    """
    kept = getattr(request.config, "cache", None)
    cache = run_directory / "cache" if kept is None else Path(kept.mkdir("planish")).resolve()
    cache = run_directory / "cache" if distrust(cache) else cache
    programs = cache / "planish" / "xla"
    programs.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep_kernels(cache / "planish" / "kernels")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
    if "jax" in sys.modules:  # it has read its variables
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(programs))
    return cache


def keep_kernels(directory: Path) -> None:
    """Let PLANISH_TEST_KERNELS be the directory, for commands in processes of their own, too."""
    named = os.environ.get("PLANISH_TEST_KERNELS")
    kept = Path(named).resolve() if named else None
    if directory.is_symlink() and directory.resolve() != kept:
        directory.unlink(missing_ok=True)
    if kept is not None:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another process was first
            directory.symlink_to(kept)


@pytest.fixture(scope="session")
def kernels_directory(private_cache: Path) -> Path:
    """Where the kernels' libraries are kept; PLANISH_TEST_KERNELS names another place."""
    return Path(os.environ.get("PLANISH_TEST_KERNELS") or private_cache / "planish" / "kernels")


@pytest.fixture(scope="session")
def kernels(kernels_directory: Path, request: pytest.FixtureRequest) -> list[str]:
    """The native kernels of every instruction set that this processor runs; their names.

    Without --whole, --rest or --every only the best: each set takes 16 to 70 seconds to compile,
    and the programs that call it more. What loops over them is marked again. They are kept between
    runs where PLANISH_TEST_KERNELS names a directory.
    """
    from planish.fast.native.build import find_compiler
    from planish.fast.native.instruction_sets import available
    from planish.fast.native.library import load_library
    from planish.reference.errors import KernelsError

    try:
        find_compiler()
    except KernelsError as problem:
        pytest.skip(str(problem))
    sets = [one.name for one in available()]
    if not has_every_set(request.config):
        sets = sets[:1]
    kept = kernels_directory
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    with kept.with_suffix(".lock").open("w") as lock:  # one process compiles, others load
        fcntl.flock(lock, fcntl.LOCK_EX)
        return load_library(kept, sets).sets


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama: 2 layers, width 64, 128 positions, one token per byte. Do not write there."""
    return write_llama(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one layer, whose programs compile in half the time. Do not write there."""
    return write_llama(tmp_path_factory.mktemp("models"), num_hidden_layers=1)


@pytest.fixture
def make_llama(tmp_path: Path) -> Callable[..., Path]:
    """make_llama(name=..., seed=..., **changes of config.json) -> a model of this test's own."""

    def make(**changes: object) -> Path:
        return write_llama(tmp_path, **changes)  # type: ignore[arg-type]

    return make
