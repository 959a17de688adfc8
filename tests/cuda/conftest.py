"""Kernels built for the host (csrc/cuda/fibers.h), where a CUDA toolkit's headers are found."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"

HostBuild = Callable[..., ctypes.CDLL]


def missing(what: str) -> NoReturn:
    """Skips, or fails where JOINTBERT_NEEDS_NVCC says that CUDA's tools are there."""
    if os.environ.get("JOINTBERT_NEEDS_NVCC"):
        pytest.fail(what)
    pytest.skip(what)


def meetings(library: ctypes.CDLL, run: Callable[[], object]) -> tuple[int, int]:
    """How often a run's blocks meet, and its clusters."""
    before, after = (ctypes.c_ulong * 2)(), (ctypes.c_ulong * 2)()
    library.host_meetings(before)
    run()
    library.host_meetings(after)
    return after[0] - before[0], after[1] - before[1]


def cuda_include() -> Path | None:
    """The toolkit's headers: those of nvcc, or where it usually is."""
    nvcc = shutil.which("nvcc")
    if nvcc:
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=False)
        for line in dry.stderr.splitlines():
            if line.startswith("#$ TOP="):
                return Path(line.removeprefix("#$ TOP=").strip()) / "include"
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    return usual if (usual / "cuda_fp16.h").is_file() else None


@pytest.fixture(scope="session")
def compile_for_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles sources, kernels among them, to a library ``name``.so; skips where that can't be."""
    include = cuda_include()
    if include is None:
        missing("no CUDA toolkit: its headers (cuda_fp16.h) are needed to build kernels for the host")
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        missing("no C++ compiler")
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC"]
    flags += os.environ.get("JOINTBERT_HOST_FLAGS", "").split()  # sanitizers
    where = ["-isystem", str(include), "-I", str(CUDA)]

    def compile_sources(name: str, sources: list[Path], options: list[str]) -> Path:
        folder = tmp_path_factory.mktemp("host")
        library = folder / f"{name}.so"
        running = []
        for source in sources:
            command = [
                compiler,
                *flags,
                "-x",
                "c++",
                *where,
                *options,
                "-c",
                str(source),
                "-o",
                str(folder / f"{source.name}.o"),
            ]
            running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        for one in running:
            _, said = one.communicate()
            assert one.returncode == 0, said
        link = [compiler, *flags, "-shared", *(str(folder / f"{source.name}.o") for source in sources), "-o", str(library)]
        subprocess.run(link, check=True)
        return library

    return compile_sources


@pytest.fixture(scope="session")
def build_for_host(compile_for_host: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    """Compiles a test's harness around a kernel file (or copies of it and of a file beside it, ``changed``) and loads it."""

    def build(
        harness: str, kernels: str, change: Callable[[str], str] | None = None, changed: str | None = None
    ) -> ctypes.CDLL:
        source = CUDA / kernels
        if change is not None:
            folder = tmp_path_factory.mktemp("changed")
            source = Path(shutil.copy(source, folder))
            text = (CUDA / (changed or kernels)).read_text()
            assert change(text) != text
            (folder / (changed or kernels)).write_text(change(text))
        folder = Path(__file__).parent
        return ctypes.CDLL(str(compile_for_host(Path(harness).stem, [folder / harness], [f'-DSOURCE="{source}"'])))

    return build
