"""The GPU's module for every architecture that is supported: compiled once, without warnings or spills."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.backends.test_cuda import configure, needs_nvcc

ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "120")
pytestmark = needs_nvcc


class Built(NamedTuple):
    """The module, and what the compilers said."""

    module: Path
    said: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("module")
    options = ["-DJOINTBERT_CUDA_ARCHS=all", "-DJOINTBERT_WERROR=ON", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"]
    configure(folder, *options, "-G", "Unix Makefiles" if shutil.which("make") else "Ninja")
    build = ["cmake", "--build", str(folder), "--target", "_cuda", "--parallel", "2"]
    if shutil.which("make"):
        build += ["--", "--output-sync=target"]  # what is said of a file stays together
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (module,) = folder.glob("_cuda*.so")
    return Built(module, done.stdout + done.stderr)


def test_no_warnings(built: Built) -> None:
    assert "warning" not in built.said.lower()


def test_no_spills(built: Built) -> None:
    compiled = re.findall(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", built.said)
    assert {a for _, a in compiled} == set(ARCHITECTURES)
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
    kernels = re.findall(r"entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", built.said, re.DOTALL)
    assert len(kernels) == len(compiled)
    for name, *spilled in kernels:
        # Two poses of a warp and their factors are a few values more than 255 registers.
        allowed = 64 if "tiles_kernel" in name and "Li2E" in name else 0
        assert max(map(int, spilled)) <= allowed, name


def test_it_imports_without_a_driver(built: Built) -> None:
    text = (
        "import _cuda\n"
        "print(_cuda.devices())\n"
        "try: _cuda.soft_argmax(0, 0, 1, 64, 64, False, True, 100.0, -1, 0, 0, 0, 0)\n"
        "except RuntimeError as error: print(error)\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", text], cwd=built.module.parent, env=hidden, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    count, call = ran.stdout.splitlines()
    assert count.startswith("(0, ")
    assert re.match(r"soft_argmax: .* \(CUDA error \d+\)", call)
    # From the toolkit, or the package nvidia-cuda-cuobjdump.
    packaged = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "cuobjdump"
    cuobjdump = shutil.which("cuobjdump") or (packaged if packaged.is_file() else None)
    if cuobjdump is None:
        pytest.skip("no cuobjdump: what the module holds is not asserted")
    code = subprocess.run(
        [str(cuobjdump), "--list-elf", "--list-ptx", str(built.module)], capture_output=True, text=True, check=True
    )
    found = set(re.findall(r"sm_(\d+a?)\.(cubin|ptx)", code.stdout))
    expected = {(a, "cubin") for a in ARCHITECTURES} | {("90", "ptx"), ("120", "ptx")}
    assert found == expected
