"""The GPU's module where there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jointbert.backends.cuda import load_module

ROOT = Path(__file__).resolve().parents[2]


def test_an_installation_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jointbert._cuda", None)
    load_module.cache_clear()
    with pytest.raises(ImportError, match=r"no GPU kernels.*JOINTBERT_CUDA_ARCHS=all"):
        load_module()
    load_module.cache_clear()


def configure(folder: Path, *options: str) -> str:
    import pybind11

    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") and shutil.which("cmake")), reason="needs nvcc and cmake to build the GPU's module"
)


@needs_nvcc
def test_without_a_gpu_the_build_is_for_the_cpu_and_says_how_to_ask(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU")
    assert "JOINTBERT_CUDA_ARCHS=all builds the GPU's module" in configure(tmp_path)
    assert "GPU" not in configure(tmp_path / "none", "-DJOINTBERT_CUDA_ARCHS=none")


@needs_nvcc
def test_the_module_of_every_architecture_imports_without_a_driver(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    configure(tmp_path, "-DJOINTBERT_CUDA_ARCHS=all")
    build = ["cmake", "--build", str(tmp_path), "--target", "_cuda", "--parallel", "2"]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    (module,) = tmp_path.glob("_cuda*.so")
    text = (
        "import _cuda\n"
        "print(_cuda.devices())\n"
        "try: _cuda.soft_argmax(0, 0, 1, 64, 64, False, True, 100.0, -1, 0, 0, 0, 0)\n"
        "except RuntimeError as error: print(error)\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=hidden, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    count, call = ran.stdout.splitlines()
    assert count.startswith("(0, ")
    assert re.match(r"soft_argmax: .* \(CUDA error \d+\)", call)
    # From the toolkit, or the package nvidia-cuda-cuobjdump.
    packaged = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "cuobjdump"
    cuobjdump = shutil.which("cuobjdump") or (packaged if packaged.is_file() else None)
    if cuobjdump is None:
        pytest.skip("no cuobjdump: what the module holds is not asserted")
    code = subprocess.run([str(cuobjdump), "--list-elf", "--list-ptx", str(module)], capture_output=True, text=True, check=True)
    found = set(re.findall(r"sm_(\d+a?)\.(cubin|ptx)", code.stdout))
    expected = {(a, "cubin") for a in ("75", "80", "86", "89", "90a", "100", "120")} | {("90", "ptx"), ("120", "ptx")}
    assert found == expected
