"""The GPU's module where there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jointbert.cuda import module as cuda_module
from jointbert.cuda.module import load_module
from tests.support.cuda_builds import configure, needs_nvcc


def test_an_installation_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jointbert._cuda", None)
    load_module.cache_clear()
    with pytest.raises(ImportError, match=r"no GPU kernels.*JOINTBERT_CUDA_ARCHS=all"):
        load_module()
    load_module.cache_clear()


def test_what_cuda_says_comes_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(number: int) -> None:
        raise RuntimeError(f"soft_argmax: failed (CUDA error {number})")

    for number, missing, expected in (
        (7, "there is no GPU", "; there is no GPU"),
        (209, "", "; the kernels are built for 90a-real"),
        (2, "", "$"),
    ):
        module = SimpleNamespace(devices=lambda why=missing: (0, why), ARCHITECTURES="90a-real")
        monkeypatch.setattr(cuda_module, "load_module", lambda m=module: m)
        with pytest.raises(RuntimeError, match=rf"soft_argmax: failed \(CUDA error {number}\){expected}"):
            cuda_module.call(launch, number)


def gpu_of(folder: Path, capability: str) -> dict[str, str]:
    """An environment where nvidia-smi knows a GPU of this compute capability, or none."""
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{f'echo {capability}' if capability else 'exit 9'}\n")
    tool.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@needs_nvcc
@pytest.mark.parametrize(
    ("capability", "said"),
    [
        ("", "no GPU: building for the CPU alone; -C cmake.define.JOINTBERT_CUDA_ARCHS=all builds the GPU's module"),
        ("5.2", "no kernels for the GPU of compute capability 5.2"),
        ("99.0", "no kernels for the GPU of compute capability 99.0"),
        ("9.0", None),
    ],
)
def test_what_is_built_for_the_gpu_that_is_found(tmp_path: Path, capability: str, said: str | None) -> None:
    output = configure(tmp_path / "build", environment=gpu_of(tmp_path / "bin", capability))
    targets = subprocess.run(
        ["cmake", "--build", str(tmp_path / "build"), "--target", "help"], capture_output=True, text=True, check=True
    )
    assert ("_cuda" in targets.stdout) == (said is None)
    assert said is None or said in output
    assert architectures(tmp_path / "build") == (set() if said else {"90a-real"})


def architectures(build: Path) -> set[str]:
    """What the module of a configured build will be compiled for."""
    files = [*build.rglob("flags.make"), *build.glob("build.ninja")]
    found = (re.findall(r'JOINTBERT_CUDA_ARCHS=[\\"]+([^"\\]*)', f.read_text()) for f in files)
    return {arch for texts in found for text in texts for arch in text.split()}


@needs_nvcc
@pytest.mark.parametrize(
    ("asked", "built"),
    [
        ("none", set()),
        ("80-real;120", {"80-real", "120"}),
        (
            "all",
            {"75-real", "80-real", "86-real", "89-real", "90a-real", "100-real", "120-real", "90-virtual", "120-virtual"},
        ),
    ],
)
def test_what_is_built_when_asked(tmp_path: Path, asked: str, built: set[str]) -> None:
    configure(tmp_path / "build", f"-DJOINTBERT_CUDA_ARCHS={asked}", environment=gpu_of(tmp_path / "bin", "9.0"))
    assert architectures(tmp_path / "build") == built


def test_asking_for_kernels_without_nvcc_is_an_error(tmp_path: Path) -> None:
    if not shutil.which("cmake"):
        pytest.skip("needs cmake")
    without = {**os.environ, "CUDACXX": str(tmp_path / "nvcc")}
    with pytest.raises(AssertionError, match="is all, but there is no nvcc"):
        configure(tmp_path / "build", "-DJOINTBERT_CUDA_ARCHS=all", environment=without)
    assert "jointbert" not in configure(tmp_path / "quiet", environment=without)
