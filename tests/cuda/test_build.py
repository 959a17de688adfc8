"""jointbert._cuda as nvcc builds it: warnings, spilled registers, the table in the docs, what the module needs and holds.

For two architectures, the oldest and the one of the docs; for all of them with --full.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.cuda_builds import ROOT, configure, missing, needs_nvcc

ALL = ("75", "80", "86", "89", "90a", "100", "120")
PER_COMMIT = ("75", "90a")
pytestmark = needs_nvcc


class Built(NamedTuple):
    """The module, its architectures, and the compilers' output."""

    module: Path
    architectures: tuple[str, ...]
    output: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Built:
    folder = tmp_path_factory.mktemp("module")
    architectures = ALL if full else PER_COMMIT
    names = "all" if full else ";".join(f"{a}-real" for a in architectures)
    options = [f"-DJOINTBERT_CUDA_ARCHS={names}", "-DJOINTBERT_WERROR=ON", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"]
    configure(folder, *options, "-G", "Unix Makefiles" if shutil.which("make") else "Ninja")
    build = ["cmake", "--build", str(folder), "--target", "_cuda", "--parallel", "2"]
    if shutil.which("make"):
        build += ["--", "--output-sync=target"]  # the output of a file stays together
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (module,) = folder.glob("_cuda*.so")
    return Built(module, architectures, done.stdout + done.stderr)


def test_no_warnings(built: Built) -> None:
    assert "warning" not in built.output.lower()


def test_spilled_registers(built: Built) -> None:
    """None, but in the kernel with two poses a warp (docs/gpu.md)."""
    compiled = re.findall(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", built.output)
    assert {a for _, a in compiled} == set(built.architectures)
    for kernel in (
        "tiles_kernel",
        "cluster_kernel",
        "grid_kernel",
        "maps_kernel",
        "pixels_kernel",
        "backward_kernel",
        "depth_kernel",
    ):
        assert any(kernel in name for name, _ in compiled)
    kernels = re.findall(r"entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", built.output, re.DOTALL)
    assert len(kernels) == len(compiled)
    for name, *spilled in kernels:
        allowed = 64 if "tiles_kernel" in name and "Li2E" in name else 0
        assert max(map(int, spilled)) <= allowed, name


def test_the_table_in_the_docs(built: Built, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    if "release 13.0" not in version or shutil.which("g++") is None:
        pytest.skip("the table in docs/gpu.md is nvcc 13.0's")
    script = runpy.run_path(str(ROOT / "scripts" / "kernel_resources.py"))
    sizes = script["measure"]("g++", Path(nvcc), tmp_path)
    found = script["table"](script["kernels_in"](built.output, "90a"), sizes, "90a")
    docs = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines()
    begin = docs.index(found[0])
    assert docs[begin : docs.index("", begin)] == found


def test_cudart_is_linked_statically(built: Built) -> None:
    """The module needs no CUDA library."""
    needed = re.findall(rb"lib[a-z+_]+\.so[.0-9]*", built.module.read_bytes())
    assert b"libstdc++.so.6" in needed
    assert not [n for n in needed if n.startswith(b"libcudart")]


def test_it_imports_without_a_driver(built: Built, full: bool) -> None:
    text = (
        "import _cuda\n"
        "print(_cuda.devices())\n"
        "try: _cuda.soft_argmax(0, 0, 1, 64, 64, False, True, 100.0, -1, 0, 0, 0, 0, 0)\n"
        "except RuntimeError as error: print(error)\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", text], cwd=built.module.parent, env=hidden, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    count, call = ran.stdout.splitlines()
    assert count.startswith("(0, ")
    assert re.match(r"cudaGetDevice: .* \(CUDA error \d+\)", call)
    # From the toolkit, or the package nvidia-cuda-cuobjdump.
    packaged = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "cuobjdump"
    cuobjdump = shutil.which("cuobjdump") or (packaged if packaged.is_file() else None)
    if cuobjdump is None:
        missing("no cuobjdump: the module's architectures are not checked")
    code = subprocess.run(
        [str(cuobjdump), "--list-elf", "--list-ptx", str(built.module)], capture_output=True, text=True, check=True
    )
    found = set(re.findall(r"sm_(\d+a?)\.(cubin|ptx)", code.stdout))
    expected = {(a, "cubin") for a in built.architectures}
    if full:
        expected |= {("90", "ptx"), ("120", "ptx")}
    assert found == expected
