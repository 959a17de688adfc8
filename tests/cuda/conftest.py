"""Kernels built for the host (csrc/cuda/fibers.h), where a CUDA toolkit's headers are found."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"

HostBuild = Callable[..., ctypes.CDLL]


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
def build_for_host(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    """Compiles a test's harness around a kernel file (or a changed copy of it) and loads it."""
    include = cuda_include()
    if include is None:
        pytest.skip("no CUDA toolkit: its headers (cuda_fp16.h) are needed to build kernels for the host")
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("host")

    def build(harness: str, kernels: str, change: Callable[[str], str] | None = None) -> ctypes.CDLL:
        source = CUDA / kernels
        name = f"{Path(harness).stem}_{len(list(folder.iterdir()))}"
        if change is not None:
            text = source.read_text()
            source = folder / f"{name}.cu"
            source.write_text(change(text))
            assert source.read_text() != text
        library = folder / f"{name}.so"
        flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared"]
        where = ["-isystem", str(include), "-I", str(CUDA), f'-DSOURCE="{source}"']
        command = [compiler, *flags, *where, str(Path(__file__).parent / harness), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(library))

    return build
