"""Builds of the CUDA sources for tests: for the host with the emulator (tests/emulation), and by CMake and nvcc."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
EMULATION = ROOT / "tests" / "emulation"
MODULE_SOURCES = (
    "csrc/bindings/cuda.cpp",
    "csrc/cuda/common/session.cpp",
    "csrc/cuda/heatmaps/soft_argmax.cu",
    "csrc/cuda/heatmaps/soft_argmax_depth.cu",
    "csrc/cuda/refiner/device_refiner.cpp",
    "csrc/cuda/refiner/refiner.cu",
)
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2, "uneven": 3}
"""In which order the emulator runs threads (tests/emulation/resident_blocks.h)."""


def missing(what: str) -> NoReturn:
    """Skips the test, or fails it where JOINTBERT_NEEDS_NVCC says that CUDA's tools are installed."""
    if os.environ.get("JOINTBERT_NEEDS_NVCC"):
        pytest.fail(what)
    pytest.skip(what)


needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") and shutil.which("cmake")) and not os.environ.get("JOINTBERT_NEEDS_NVCC"),
    reason="needs nvcc and cmake to build the GPU's module",
)


def configure(folder: Path, *options: str, environment: dict[str, str] | None = None) -> str:
    """Runs CMake on the checkout and returns its output."""
    pybind11 = pytest.importorskip("pybind11")

    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cuda_include() -> Path | None:
    """The folder of the toolkit's headers: nvcc's, or the usual one."""
    nvcc = shutil.which("nvcc")
    if nvcc:
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=False)
        for line in dry.stderr.splitlines():
            if line.startswith("#$ TOP="):
                return Path(line.removeprefix("#$ TOP=").strip()) / "include"
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    return usual if (usual / "cuda_fp16.h").is_file() else None


def compile_for_host(library: Path, sources: Iterable[Path], options: Iterable[str] = ()) -> Path:
    """Compiles C++ and CUDA sources to a shared library that runs kernels in the emulator.

    Skips the test without CUDA headers or a compiler. Flags in JOINTBERT_HOST_FLAGS (sanitizers) are added.
    """
    include = cuda_include()
    if include is None:
        missing("no CUDA toolkit: its headers (cuda_fp16.h) are needed to build kernels for the host")
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        missing("no C++ compiler")
    flags = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC"]
    flags += os.environ.get("JOINTBERT_HOST_FLAGS", "").split()
    where = ["-isystem", str(include), "-I", str(EMULATION)]
    running, objects = [], []
    for source in sources:
        objects.append(str(library.with_name(f"{source.name}.o")))
        command = [compiler, *flags, "-x", "c++", *where, *options, "-c", str(source), "-o", objects[-1]]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for one in running:
        _, errors = one.communicate()
        assert one.returncode == 0, errors
    subprocess.run([compiler, *flags, "-shared", *objects, "-o", str(library)], check=True)
    return library


def barrier_counts(library: ctypes.CDLL, run: Callable[[], object]) -> tuple[int, int]:
    """How many barriers of blocks and of clusters a run completes."""
    before, after = (ctypes.c_ulong * 2)(), (ctypes.c_ulong * 2)()
    library.host_barrier_counts(before)
    run()
    library.host_barrier_counts(after)
    return after[0] - before[0], after[1] - before[1]


class Synchronisation(NamedTuple):
    """A statement in which a thread waits for others, or for a copy."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


_SYNCHRONISATION = re.compile(r"__sync(?:threads|warp)\(\);|group\.barrier\(\);|cp_async_wait_group<[^>]*>\(\);")


def synchronisations(*files: str) -> list[Synchronisation]:
    """All of them in files of csrc/cuda, in order."""
    found = []
    for file in files:
        text = (CUDA / file).read_text()
        found += [Synchronisation(file, text[: m.start()].count("\n") + 1, m.group()) for m in _SYNCHRONISATION.finditer(text)]
    return found


def with_droppable_synchronisations(folder: Path, *files: str) -> Path:
    """A copy of csrc in which ``host_drop_synchronisation(i)`` leaves out the i-th of ``synchronisations(*files)``."""
    copy = Path(shutil.copytree(CSRC, folder / "csrc"))
    count = 0

    def conditional(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"if (jointbert::emulator::dropped_synchronisation() != {count - 1}) {match.group()}"

    for file in files:
        path = copy / "cuda" / file
        path.write_text(_SYNCHRONISATION.sub(conditional, path.read_text()))
    assert count == len(synchronisations(*files))
    return copy
