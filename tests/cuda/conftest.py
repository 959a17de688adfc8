"""Kernels built for the host, and ``jointbert._cuda`` on the fake CUDA runtime (tests/emulation)."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import jointbert
from jointbert import Refiner
from jointbert.contract.layout import LAYOUT
from jointbert.cuda import libraries
from jointbert.cuda.module import load_module
from jointbert.runtimes.cuda import CudaBackend
from jointbert.weights import load_weights
from tests.support.cuda_builds import CSRC, EMULATION, MODULE_SOURCES, ROOT, compile_for_host
from tests.support.once import once

HostBuild = Callable[..., ctypes.CDLL]


@pytest.fixture(scope="session")
def build_for_host(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    """Compiles a harness of tests/emulation around a kernel file of csrc/cuda, or of a changed copy of csrc, and loads it."""

    def build(harness: str, kernels: str, csrc: Path = CSRC) -> ctypes.CDLL:
        name, options = f"{Path(harness).stem}.so", [f'-DSOURCE="{csrc / "cuda" / kernels}"']

        def compile_in(folder: Path) -> None:
            compile_for_host(folder / name, [EMULATION / harness], options)

        if csrc == CSRC:
            return ctypes.CDLL(str(once(tmp_path_factory, Path(harness).stem, compile_in) / name))
        folder = tmp_path_factory.mktemp("host")
        compile_in(folder)
        return ctypes.CDLL(str(folder / name))

    return build


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """``jointbert._cuda``, its kernels run by the emulator and its CUDA calls answered by the fake runtime."""
    pybind11 = pytest.importorskip("pybind11")
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    options = ["-fvisibility=hidden", '-DJOINTBERT_CUDA_ARCHS="emulated"', *(f"-isystem{i}" for i in includes)]
    sources = [*(ROOT / source for source in MODULE_SOURCES), EMULATION / "fake_cuda_runtime.cpp"]
    folder = once(tmp_path_factory, "emulated", lambda folder: compile_for_host(folder / "_cuda.so", sources, options))
    path = folder / "_cuda.so"
    spec = importlib.util.spec_from_file_location("jointbert._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    return built


@pytest.fixture
def gpu(emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """Makes the package use the emulated module, which has one GPU; returns the fake runtime's controls."""
    monkeypatch.setitem(sys.modules, "jointbert._cuda", emulated_module)
    monkeypatch.setattr(jointbert, "_cuda", emulated_module, raising=False)
    monkeypatch.setattr(CudaBackend, "measured_sizes", ())  # the emulator is too slow for thousands of poses
    load_module.cache_clear()
    assert emulated_module.__file__ is not None
    control = ctypes.CDLL(emulated_module.__file__)
    control.fake_allocations.restype = ctypes.c_long
    control.fake_event_time.argtypes = (ctypes.c_float,)
    control.fake_synchronisations.restype = ctypes.c_long
    control.fake_block_stream.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    control.fake_host_address.argtypes = (ctypes.c_void_p,)
    yield control
    control.fake_devices(1, 90, 13000)
    control.fake_host_address(None)
    control.fake_fail(b"")
    control.fake_skip_launches(0)
    libraries._under_way.clear()
    libraries._recorded.clear()
    load_module.cache_clear()


@pytest.fixture(scope="session")
def small(random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one layer: the emulator is slow."""
    from safetensors.numpy import save_file

    weights = load_weights(random_weights)
    tensors = {k: v for k, v in weights.tensors.items() if not k.startswith("layers.") or k.startswith("layers.0.")}
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    sizes = {key: str(value) for key, value in (weights.sizes | {"layers": 1}).items()}
    save_file(tensors, path, metadata={"layout": LAYOUT, "name": "small", **sizes})
    return path


@pytest.fixture
def refine(small: Path) -> Callable[..., Any]:
    """``jointbert.refine`` with the small weights."""
    return partial(jointbert.refine, weights=small)


@pytest.fixture
def make(small: Path) -> Callable[..., Refiner]:
    """``Refiner`` with the small weights."""
    return partial(Refiner, small)


@pytest.fixture(scope="session")
def few(poses: np.ndarray) -> np.ndarray:
    """Five poses."""
    return poses[:5]
