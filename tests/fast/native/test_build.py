"""The kernels' build: on first use, once, whole, and done without where there is no compiler."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planish.fast.native import build, library
from planish.fast.native.build import FFI, CacheError, Compiler, find_compiler, library_path
from planish.fast.native.instruction_sets import available, cpu_features
from planish.reference.errors import KernelsError
from tests.processes import is_running

ROOT = Path(__file__).parents[3]
COPYING = """#!/bin/sh
[ "$1" = --version ] && echo '{version}' && exit 0
for target; do :; done
sleep 1
cp "{kept}/$(basename "$target")" "$target"
"""
LOAD = """
import sys
from pathlib import Path
from planish.fast.native.library import load_library
print(load_library(Path(sys.argv[1])).sets)
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
    monkeypatch.setattr(build, "version", lambda _: "0.0.0")
    assert library_path(tmp_path, compiler, FFI) != path
    assert library_path(tmp_path, compiler, "plain") != library_path(tmp_path, compiler, "avx512")


def test_a_copy_of_the_sources_is_the_same_library_and_a_changed_one_is_not(tmp_path, monkeypatch):
    compiler, copies = find_compiler(), tmp_path / "sources"
    before = library_path(tmp_path, compiler, "plain").name
    shutil.copytree(build.SOURCES, copies)
    monkeypatch.setattr(build, "SOURCES", copies)
    assert library_path(tmp_path, compiler, "plain").name == before
    changed = copies / "matmul" / "pack.h"
    changed.write_text(changed.read_text() + "\n")
    assert library_path(tmp_path, compiler, "plain").name != before


@pytest.mark.whole
def test_two_processes_that_start_at_once_both_get_a_whole_library(
    kernels, kernels_directory, tmp_path
):
    """By a compiler that takes a second to copy what the real one has compiled."""
    compiler, cache = tmp_path / "g++", tmp_path / "cache"
    compiler.write_text(COPYING.format(version=find_compiler().version, kept=kernels_directory))
    compiler.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    arguments, best = [sys.executable, "-c", LOAD, str(cache)], f"['{available()[0].name}']\n"
    given = {"text": True, "cwd": ROOT, "env": environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **given}
    running = [subprocess.Popen(arguments, **pipes) for _ in range(2)]
    for process in running:
        out, problem = process.communicate(timeout=300)
        assert process.returncode == 0, problem
        assert out == best
        assert problem.startswith("kernels: compiled ")
    assert len(list(cache.glob("*.so"))) == 2
    assert not list(cache.glob(".building-*"))
    again = subprocess.run(arguments, capture_output=True, check=True, **given)
    assert (again.stdout, again.stderr) == (best, "")  # nothing to compile or to tell


def test_without_a_compiler_auto_says_why_and_native_refuses(monkeypatch, caplog):
    monkeypatch.setattr(library, "_loaded", [])
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert library.choose_kernels("auto", Path("/nowhere")) is False
    (message,) = caplog.messages
    assert "no C++ compiler was found" in message and "portable XLA form" in message
    with pytest.raises(KernelsError, match="no C\\+\\+ compiler was found"):
        library.choose_kernels("native", Path("/nowhere"))
    assert library.choose_kernels("xla", None) is False
    assert len(caplog.messages) == 1


def test_a_source_that_does_not_compile_is_one_line(tmp_path, monkeypatch):
    broken = tmp_path / "sources"
    broken.mkdir()
    (broken / "instruction_set.cc").write_text("int main( {\n")
    monkeypatch.setattr(build, "SOURCES", broken)
    with pytest.raises(KernelsError, match="could not compile the plain kernels.*error") as caught:
        build.build(tmp_path / "cache", ["plain"])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KernelsError, match="cannot be written"):
        build.build(tmp_path / "file" / "cache", ["plain"])


COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo "fake $0 1.0" && exit 0
for word in "$@"; do
  case "$word" in UNKNOWN) echo "error: unrecognized option '$word'" >&2; exit 1;; esac
  [ "$last" = -o ] && out=$word
  last=$word
done
[ -n "$out" ] && echo planish_library >"$out"
exit 0
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake("g++", script) -> a compiler; PATH holds these only."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def write(name, script):
        (programs / name).write_bytes(script.encode() if isinstance(script, str) else script)
        (programs / name).chmod(0o755)
        return programs / name

    return write


def test_a_compiler_too_old_for_the_best_set_gives_the_next(tmp_path, fake, caplog):
    fake("g++", COMPILER.replace("UNKNOWN", "-mavx512vnni|-mavxvnni"))
    names = ["avx512", "avxvnni", "avx2", "plain"]
    assert build.plan(tmp_path, names)[::2] == ("avx2", False)
    name, paths, compiled = build.build_best(tmp_path, names, need_ffi=True)
    assert (name, sorted(paths), compiled) == ("avx2", ["avx2", "ffi"], ["avx2"])
    (message,) = caplog.messages
    assert "could not compile the avx512 kernels" in message and "avx2 is used" in message
    assert build.plan(tmp_path, names)[::2] == ("avx2", True)
    assert build.build_best(tmp_path, names, need_ffi=True)[2] == []


def test_a_compiler_that_compiles_nothing_gives_way_to_the_next(tmp_path, fake, caplog):
    fake("g++", '#!/bin/sh\n[ "$1" = --version ] && echo g++ 1 && exit 0\nexit 1\n')
    fake("clang++", COMPILER)
    assert build.plan(tmp_path, ["plain"])[1].version.endswith("clang++ 1.0")
    name, _, compiled = build.build_best(tmp_path, ["avx2", "plain"], need_ffi=True)
    assert (name, compiled) == ("avx2", ["ffi", "avx2"])
    assert "clang++ 1.0" in caplog.messages[0]


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nexit 0\n",
        "no program",
        "",
        b"\x7fELF",
        "#!/nowhere/sh\n",
        "#!/bin/sh\nkill $$\n",
    ],
)
def test_what_does_not_say_its_version_is_no_compiler(fake, script):
    fake("g++", script)
    with pytest.raises(KernelsError, match="no C\\+\\+ compiler was found"):
        find_compiler()
    fake("c++", COMPILER)
    assert find_compiler().version.endswith("c++ 1.0")


def test_two_names_of_one_compiler_are_asked_once(fake):
    program = fake("g++", COMPILER)
    program.with_name("c++").symlink_to(program)
    assert len(list(build.compilers())) == 1


def test_a_compiler_that_speaks_latin_1_is_understood(tmp_path, fake):
    answer = b'[ "$1" = --version ] && printf "g++ (f\\374r) 1" && exit 0\n'
    fake("g++", b"#!/bin/sh\n" + answer + b'printf "error: \\344" >&2; exit 1\n')
    assert find_compiler().version == "g++ (f\ufffdr) 1"
    with pytest.raises(KernelsError, match="found error: \ufffd"):
        build.build_best(tmp_path, ["plain"], need_ffi=True)


@pytest.mark.parametrize("damage", [b"", b"library", b"library\n" + bytes(32)])
def test_a_damaged_library_is_compiled_anew(tmp_path, fake, caplog, damage):
    fake("g++", COMPILER)
    paths, _ = build.build(tmp_path / "cache", ["plain"])
    whole = paths["plain"].read_bytes()
    paths["plain"].write_bytes(damage)
    assert build.build(tmp_path / "cache", ["plain"]) == (paths, ["plain"])
    assert paths["plain"].read_bytes() == whole
    assert caplog.messages == [f"kernels: {paths['plain']} is damaged and not used"]
    assert build.build(tmp_path / "cache", ["plain"]) == (paths, [])


def test_a_library_that_cannot_be_kept_leaves_nothing_behind(tmp_path, fake, monkeypatch):
    def fill(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    fake("g++", COMPILER)
    monkeypatch.setattr(build.os, "fsync", fill)
    with pytest.raises(CacheError, match="cannot be written: No space left on device"):
        build.build(tmp_path / "cache", ["plain"])
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_keep_kernels_compiles_for_this_process(tmp_path, monkeypatch, caplog):
    built = []

    def build_best(cache, names, need_ffi):
        if cache == tmp_path:
            raise CacheError("cannot be written: Read-only file system", path=cache)
        built.append(cache)
        return "plain", {"plain": cache / "x.so"}, ["plain"]

    def load(paths):
        library._loaded.append(library.Library(None, ["plain"]))

    monkeypatch.setattr(library, "_loaded", [])
    monkeypatch.setattr(library, "build_best", build_best)
    monkeypatch.setattr(library, "_load", load)
    assert library.load_library(tmp_path).best == "plain"
    assert not built[0].exists()
    (message,) = caplog.messages
    assert "for this process only: " in message and f"{tmp_path}: cannot be written" in message


STARTING = """#!/bin/sh
[ "$1" = --version ] && echo 'g++ 1' && exit 0
{sleep} 600 &
echo $! >"{child}.new"
{mv} "{child}.new" "{child}"
wait
"""
STARTED = """
import sys
from pathlib import Path
from planish.fast.native.build import build
build(Path(sys.argv[1]), ["plain"])
"""


@pytest.fixture
def starting(tmp_path, fake):
    """A compiler that waits for a program that it starts; the file that holds its number."""
    child, programs = (
        tmp_path / "child",
        {name: shutil.which(name, path=os.defpath) for name in ("sleep", "mv")},
    )
    fake("g++", STARTING.format(child=child, **programs))
    return child


def wait_until(happened):
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


@needs_proc
def test_what_a_compiler_started_ends_with_its_time(tmp_path, starting, monkeypatch):
    monkeypatch.setattr(build, "TIMEOUT", 2)
    with pytest.raises(KernelsError, match="not done after 2 s"):
        build.build(tmp_path / "cache", ["plain"])
    number = int(starting.read_text())
    wait_until(lambda: not is_running(number))


@needs_proc
def test_ctrl_c_ends_compilers_and_what_they_started(tmp_path, starting):
    arguments = [sys.executable, "-c", STARTED, str(tmp_path / "cache")]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    wait_until(starting.exists)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    number = int(starting.read_text())
    wait_until(lambda: not is_running(number))


def test_an_installation_without_sources_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setattr(library, "_loaded", [])
    assert library.choose_kernels("auto", tmp_path) is False
    with pytest.raises(KernelsError, match="ffi.cc: the installation lacks this source"):
        build.plan(tmp_path, ["plain"])
    assert "lacks this source" in caplog.messages[0]


def test_a_named_set_becomes_the_default_and_auto_the_best_again(kernels, private_cache):
    cache, best = private_cache / "planish" / "kernels", available()[0].name
    for choice, first in ((kernels[-1], kernels[-1]), ("auto", best), ("native", best)):
        assert library.choose_kernels(choice, cache) is True
        loaded = library.load_library(cache)
        assert loaded.sets[0] == first and sorted(loaded.sets) == sorted(kernels)


def test_an_instruction_set_that_the_processor_lacks_is_refused(tmp_path):
    with pytest.raises(KernelsError, match="this processor cannot run it"):
        library.load_library(tmp_path, ["sse9"])


def test_a_compiler_that_reports_success_and_writes_nothing_is_a_failure(tmp_path, fake):
    fake("g++", COMPILER.replace("echo planish_library", ":"))
    with pytest.raises(KernelsError, match="reports no error and makes no library"):
        build.build_best(tmp_path / "cache", ["plain"], need_ffi=True)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_library_that_others_can_write_is_compiled_anew(tmp_path, fake, caplog):
    fake("g++", COMPILER)
    paths, _ = build.build(tmp_path / "cache", ["plain"])
    paths["plain"].chmod(0o666)
    assert build.build(tmp_path / "cache", ["plain"]) == (paths, ["plain"])
    assert "others, or they can write it" in caplog.messages[0]
    assert paths["plain"].stat().st_mode & 0o022 == 0


def test_a_set_that_the_system_refuses_is_an_error(kernels, tmp_path):
    source, made = tmp_path / "refused.cc", tmp_path / "refused.so"
    source.write_text('extern "C" void* planish_kernels() { return nullptr; }\n')
    compiler = find_compiler().path
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    with pytest.raises(KernelsError, match="the system does not let this process use it"):
        library._load({"refused": made})
