"""The kernels' build: on first use, once, whole, and done without where there is no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fast.kernels import build, library
from fast.kernels.build import FFI, Compiler, find_compiler, library_path
from fast.kernels.instruction_sets import available, cpu_features
from reference.errors import KernelsError

ROOT = Path(__file__).parents[2]
LOAD = """
import sys
from pathlib import Path
from fast.kernels.library import load_library
print(load_library(Path(sys.argv[1]), ["plain"]).sets)
"""


def test_the_best_set_that_the_processor_has_comes_first():
    wide = frozenset("avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni".split())
    names = [one.name for one in available("x86_64", wide)]
    assert names == ["avx512", "avx2", "plain"]
    assert [one.name for one in available("x86_64", frozenset({"avx2", "fma", "f16c"}))] == [
        "avx2",
        "plain",
    ]
    assert [one.name for one in available("aarch64", frozenset({"asimddp"}))] == ["neon", "plain"]
    assert [one.name for one in available("riscv64", wide)] == ["plain"]


def test_an_unreadable_cpuinfo_leaves_plain(tmp_path):
    assert cpu_features(tmp_path / "nothing") == frozenset()
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nFeatures : fp asimd asimddp\n\nFeatures : x\n"
    )
    assert cpu_features(tmp_path / "cpuinfo") == {"fp", "asimd", "asimddp"}


def test_a_library_is_named_after_all_that_it_is_made_from(tmp_path, monkeypatch):
    compiler = find_compiler()
    path = library_path(tmp_path, compiler, FFI)
    assert library_path(tmp_path, Compiler(compiler.path, "another version"), FFI) != path
    monkeypatch.setattr(build.jaxlib, "__version__", "0.0.0")
    assert library_path(tmp_path, compiler, FFI) != path
    assert library_path(tmp_path, compiler, "plain") != library_path(tmp_path, compiler, "avx512")


def test_a_changed_source_is_another_library(tmp_path, monkeypatch):
    compiler, copies = find_compiler(), tmp_path / "sources"
    copies.mkdir()
    for source in (*build.SOURCES.glob("*.h"), *build.SOURCES.glob("*.cc")):
        (copies / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", copies)
    before = library_path(tmp_path, compiler, "plain").name
    (copies / "rows.h").write_text((copies / "rows.h").read_text() + "\n")
    assert library_path(tmp_path, compiler, "plain").name != before


def test_two_processes_that_start_at_once_both_get_a_whole_library(tmp_path):
    arguments = [sys.executable, "-c", LOAD, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    running = [subprocess.Popen(arguments, **pipes) for _ in range(2)]
    for process in running:
        out, problem = process.communicate(timeout=300)
        assert process.returncode == 0, problem
        assert out.splitlines()[-1] == "['plain']"
        assert problem.startswith("kernels: compiled ")
    assert len(list(tmp_path.glob("*.so"))) == 2
    assert not list(tmp_path.glob(".building-*"))
    again = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (again.stdout, again.stderr) == ("['plain']\n", "")  # nothing to compile or to tell


def test_without_a_compiler_auto_tells_why_and_native_refuses(monkeypatch, caplog):
    monkeypatch.setattr(library, "_loaded", [])
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert library.choose_kernels("auto", Path("/nowhere")) is False
    (told,) = caplog.messages
    assert "no C++ compiler was found" in told and "portable XLA form" in told
    with pytest.raises(KernelsError, match="no C\\+\\+ compiler was found"):
        library.choose_kernels("native", Path("/nowhere"))
    assert library.choose_kernels("xla", None) is False
    assert len(caplog.messages) == 1


def test_a_source_that_does_not_compile_is_one_line(tmp_path, monkeypatch):
    broken = tmp_path / "sources"
    broken.mkdir()
    (broken / "kernels.cc").write_text("int main( {\n")
    monkeypatch.setattr(build, "SOURCES", broken)
    with pytest.raises(KernelsError, match="could not compile the plain kernels.*error") as caught:
        build.build(tmp_path / "cache", ["plain"])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KernelsError, match="cannot be written"):
        build.build(tmp_path / "file" / "cache", ["plain"])


def test_an_instruction_set_that_the_processor_lacks_is_refused(tmp_path):
    with pytest.raises(KernelsError, match="this processor does not run"):
        library.load_library(tmp_path, ["sse9"])
