"""The refiner's kernels in the emulator, against the torch reference in float64."""

from __future__ import annotations

import ctypes
import os
import re
import runpy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jointbert.contract import Batch, Result, Status  # noqa: E402
from jointbert.runtimes.cuda.packing import KernelSizes, pack  # noqa: E402
from jointbert.runtimes.torch import TorchBackend  # noqa: E402
from jointbert.weights import Weights, load_weights  # noqa: E402
from tests.support.cuda_builds import (  # noqa: E402
    CUDA,
    ROOT,
    SCHEDULES,
    Synchronisation,
    barrier_counts,
    synchronisations,
    with_droppable_synchronisations,
)

HARNESS = ("refiner_host.cpp", "refiner/refiner.cu")
KERNELS = KernelSizes(heads=8, width=128, ffn=256, features=8, outputs=4, chunks=16, inner=32, outer=128)
PRECISIONS = {"f16": torch.float16, "bf16": torch.bfloat16}
VARIANTS = {"cluster": 0, "grid": 1, "tiles": 2}
NUMBERS = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, np.dtype(np.float16): 2}
INVALID, NOT_SUPPORTED = 1, 801  # cudaErrorInvalidValue, cudaErrorNotSupported


@dataclass(frozen=True)
class Device:
    """The emulated device."""

    processors: int = 132
    shared_bytes: int = 232448
    capability: int = 90
    clusters: int = 16


HOPPER = Device()
AMPERE = Device(108, 166912, 80, 0)
TURING = Device(40, 65536, 75, 0)
ONE_PROCESSOR = Device(processors=1)  # more than 8 poses: two a warp


@pytest.fixture(scope="module")
def library(build_for_host: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return build_for_host(*HARNESS)


@pytest.fixture(scope="module")
def weights(random_weights: Path) -> Weights:
    # Under the sanitizers one layer: its 16 chunks already go through all stages of the tiles' ring.
    return first_layers(load_weights(random_weights), 1 if os.environ.get("JOINTBERT_HOST_FLAGS") else 2)


@pytest.fixture(scope="module")
def given(poses: np.ndarray) -> Batch:
    """Left hands, masked joints, errors and confidences, another order; three of the ten frames can not be refined."""
    rng = np.random.default_rng(1)
    joints = poses[:10] / 10
    joints[1, 3] = np.nan
    joints[4] *= 30
    joints[5, 2:] = np.inf
    visible = rng.random((10, 14)) < 0.9
    visible[0] = True
    visible[7, 3:] = False
    confidence = np.where(rng.random((10, 14)) < 0.5, rng.random((10, 14)), np.nan)
    error = np.where(rng.random((10, 14)) < 0.5, rng.uniform(0.01, 300, (10, 14)), np.nan)
    return Batch(
        joints=joints,
        permutation=rng.permutation(14).astype(np.int32),
        mm_per_unit=10.0,
        mirror=rng.random(10) < 0.5,
        visible=visible,
        confidence=confidence.astype(np.float32),
        error_mm=error.astype(np.float32),
    )


def first_layers(weights: Weights, count: int) -> Weights:
    tensors = {k: v for k, v in weights.tensors.items() if not k.startswith("layers.") or int(k.split(".")[1]) < count}
    return replace(weights, tensors=tensors, sizes={**weights.sizes, "layers": count})


def plain(poses: np.ndarray) -> Batch:
    return Batch(poses, np.arange(14, dtype=np.int32), 1.0, None, None, None, None)


def on_host(
    library: ctypes.CDLL,
    weights: Weights,
    batch: Batch,
    variant: str | None,
    precision: str = "f16",
    device: Device = HOPPER,
    schedule: str = "forward",
    seed: int = 0,
    number: int | None = None,
) -> Result:
    def pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
        return None if array is None else ctypes.c_void_p(array.ctypes.data)

    ends, chunks = pack(weights, precision, KERNELS)
    count = len(batch.joints)
    order = batch.permutation.astype(np.uint8)
    out = Result(
        joints=np.full_like(batch.joints, 7),
        sigma=np.full((count, 14), 7, np.float32),
        status=np.full(count, 77, np.uint8),
        size_mm=np.full(count, 7, np.float32),
        chirality=np.full(count, 7, np.float32),
    )
    optional = [None if a is None else np.ascontiguousarray(a) for a in (batch.mirror, batch.visible)]
    code = library.host_refine(
        *map(pointer, (ends, chunks)),
        weights.sizes["layers"],
        list(PRECISIONS).index(precision),
        pointer(batch.joints),
        NUMBERS[batch.joints.dtype] if number is None else number,
        count,
        pointer(order),
        ctypes.c_double(batch.mm_per_unit),
        0,
        *map(pointer, (*optional, batch.confidence, batch.error_mm)),
        ctypes.c_float(np.nan),
        *map(pointer, (out.joints, out.sigma, out.status, out.size_mm, out.chirality)),
        -1 if variant is None else VARIANTS[variant],
        *(device.processors, device.shared_bytes, device.capability, device.clusters),
        SCHEDULES[schedule],
        seed,
    )
    if code:
        raise RuntimeError(f"code {code}")
    return out


def assert_same_bits(a: Result, b: Result) -> None:
    for name in ("joints", "sigma", "status", "size_mm", "chirality"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.tobytes() == y.tobytes(), name


def assert_equals_reference(found: Result, batch: Batch, weights: Weights, precision: str) -> None:
    """At most twice the error of torch in that precision."""
    exact = TorchBackend(weights, dtype=torch.float64).run(batch)
    torchs = TorchBackend(weights, dtype=PRECISIONS[precision]).run(batch)
    np.testing.assert_array_equal(found.status, exact.status)
    good = exact.status == Status.REFINED
    step = np.abs(batch.joints[good][np.isfinite(batch.joints[good])]).max() * np.finfo(batch.joints.dtype).eps
    for name, rounding in (("joints", step), ("sigma", 1e-6)):
        a, b, c = (getattr(x, name)[good].astype(np.float64) for x in (found, torchs, exact))
        assert np.abs(a - c).max() <= 2 * np.abs(b - c).max() + rounding, name
    assert found.joints[~good].tobytes() == batch.joints[~good].tobytes()
    assert np.isnan(found.sigma[~good]).all()
    np.testing.assert_allclose(found.size_mm, exact.size_mm, rtol=1e-6)
    np.testing.assert_allclose(found.chirality[good], exact.chirality[good], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        pytest.param("cluster", "f16", marks=pytest.mark.sanitize),
        pytest.param("grid", "f16", marks=pytest.mark.sanitize),
        pytest.param("tiles", "f16", marks=pytest.mark.sanitize),
        pytest.param("tiles", "bf16", marks=pytest.mark.sanitize),
        ("cluster", "bf16"),
        ("grid", "bf16"),
    ],
)
def test_equals_the_reference(
    library: ctypes.CDLL, weights: Weights, poses: np.ndarray, given: Batch, variant: str, precision: str
) -> None:
    for batch in (plain(poses[:3]), given):
        assert_equals_reference(on_host(library, weights, batch, variant, precision), batch, weights, precision)


def test_the_shipped_weights(library: ctypes.CDLL, poses: np.ndarray) -> None:
    shipped, batch = load_weights("nyu14"), plain(poses[:2])
    found = on_host(library, shipped, batch, "cluster")
    assert_equals_reference(found, batch, shipped, "f16")
    exact = TorchBackend(shipped, dtype=torch.float64).run(batch)
    assert np.abs(found.joints - exact.joints).max() < 0.03  # mm


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_coordinates_of_any_type(library: ctypes.CDLL, weights: Weights, poses: np.ndarray, dtype: type) -> None:
    batch = plain((poses[:2] - poses[:2].mean(1, keepdims=True)).astype(dtype))
    exact = on_host(library, weights, plain(batch.joints.astype(np.float64)), "tiles")
    found = on_host(library, weights, batch, "tiles")
    assert found.joints.dtype == dtype
    through = np.float64 if dtype is np.float64 else np.float32  # a double becomes a half by way of a float
    np.testing.assert_array_equal(found.joints, exact.joints.astype(through).astype(dtype))
    np.testing.assert_array_equal(found.sigma, exact.sigma)


@pytest.mark.sanitize
def test_bfloat16_coordinates(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
    centred = torch.from_numpy(poses[:2] - poses[:2].mean(1, keepdims=True)).bfloat16()
    found = on_host(library, weights, plain(centred.view(torch.int16).numpy().view(np.float16)), "tiles", number=3)
    exact = on_host(library, weights, plain(centred.double().numpy()), "tiles")
    back = torch.from_numpy(found.joints.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(back, torch.from_numpy(exact.joints).float().bfloat16())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_and_variants_give_the_same_bits(library: ctypes.CDLL, weights: Weights, given: Batch, precision: str) -> None:
    whole = on_host(library, weights, given, "tiles", precision)
    for variant, device in (("cluster", HOPPER), ("grid", HOPPER), ("tiles", ONE_PROCESSOR), ("cluster", Device(clusters=1))):
        assert_same_bits(on_host(library, weights, given, variant, precision, device), whole)
    for i in (0, 9):
        fields = ("joints", "mirror", "visible", "confidence", "error_mm")
        one = replace(given, **{f: getattr(given, f)[i : i + 1] for f in fields})
        alone = on_host(library, weights, one, "cluster", precision)
        assert alone.joints.tobytes() == whole.joints[i].tobytes()
        assert alone.sigma.tobytes() == whole.sigma[i].tobytes()


@pytest.mark.parametrize(
    ("schedule", "seed"), [("reverse", 0), ("random", 1), pytest.param("random", 2, marks=pytest.mark.full), ("uneven", 3)]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_schedules_give_the_same_bits(
    library: ctypes.CDLL, weights: Weights, given: Batch, variant: str, schedule: str, seed: int
) -> None:
    first = on_host(library, weights, given, variant)
    assert_same_bits(first, on_host(library, weights, given, variant, schedule=schedule, seed=seed))


@pytest.mark.parametrize(
    "count", [1, 8, pytest.param(9, marks=pytest.mark.sanitize), 17, pytest.param(40, marks=pytest.mark.full)]
)
def test_partly_filled_groups_and_tiles(library: ctypes.CDLL, weights: Weights, poses: np.ndarray, count: int) -> None:
    one_layer = first_layers(weights, 1)
    batch = plain(poses[:count])
    tiles = on_host(library, one_layer, batch, "tiles")
    for variant, device in (
        ("cluster", Device(clusters=3)),
        ("grid", Device(processors=5 * 8)),
        ("tiles", ONE_PROCESSOR),
        ("grid", TURING),
    ):
        assert_same_bits(on_host(library, one_layer, batch, variant, device=device), tiles)


def test_barrier_counts_are_those_of_kernel_resources(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
    barriers = runpy.run_path(str(ROOT / "scripts" / "kernel_resources.py"))["barriers"]

    def counted(variant: str) -> tuple[int, int]:
        return barrier_counts(library, lambda: on_host(library, weights, plain(poses[:1]), variant))

    assert counted("tiles") == (barriers("tiles<1>", layers=2)[0], 0)
    assert counted("cluster") == (0, barriers("cluster<4>", layers=2)[0])
    # A barrier of the grid variant is two barriers of each block, around a wait in global memory.
    assert counted("grid") == (2 * 8 * barriers("grid<4>", layers=2)[0], 0)


def test_unknown_confidences_and_errors(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
    """Confidences outside [0, 1] and errors that are not positive are unknown."""
    confidence, error = np.full((1, 14), np.nan, np.float32), np.full((1, 14), np.nan, np.float32)
    none = on_host(library, weights, plain(poses[:1]), "tiles")
    for c, e in ((np.nan, np.nan), (-0.1, 0), (1.1, -3)):
        confidence[:], error[:] = c, e
        given = replace(plain(poses[:1]), confidence=confidence, error_mm=error)
        assert_same_bits(on_host(library, weights, given, "tiles"), none)


@pytest.mark.sanitize
def test_variants_that_a_device_lacks(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
    one_layer, batch = first_layers(weights, 1), plain(poses[:1])
    expected = on_host(library, one_layer, batch, "tiles")
    for device in (HOPPER, AMPERE, TURING, Device(170, 101376, 120, 12)):
        assert_same_bits(on_host(library, one_layer, batch, None, device=device), expected)
    with pytest.raises(RuntimeError, match=f"code {INVALID}"):
        on_host(library, one_layer, batch, "cluster", device=AMPERE)
    with pytest.raises(RuntimeError, match=f"code {INVALID}"):
        on_host(library, one_layer, plain(poses[:41]), "grid", device=TURING)
    with pytest.raises(RuntimeError, match=f"code {NOT_SUPPORTED}"):
        on_host(library, one_layer, batch, "tiles", "bf16", TURING)
    assert len(on_host(library, one_layer, plain(poses[:0]), None).status) == 0


def test_gelu_is_torchs(library: ctypes.CDLL) -> None:
    library.host_gelu.restype = ctypes.c_float
    x = np.linspace(-12, 12, 4001).astype(np.float32)
    found = np.array([library.host_gelu(ctypes.c_float(v)) for v in x])
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(found - exact).max() < 1e-4
    near = np.abs(x) < 1
    assert (np.abs(found - exact)[near] <= 2e-4 * np.abs(x)[near]).all()  # it vanishes at 0


def test_weights_of_other_sizes_are_refused(weights: Weights) -> None:
    with pytest.raises(ValueError, match="width is 64; the GPU's kernels are compiled for 128"):
        pack(replace(weights, sizes={**weights.sizes, "width": 64}), "f16", KERNELS)
    large = {**weights.tensors, "layers.1.fc1.weight": weights.tensors["layers.1.fc1.weight"] * 1e6}
    with pytest.raises(ValueError, match="too large for f16, or is no number; take precision 'bf16'"):
        pack(replace(weights, tensors=large), "f16", KERNELS)
    pack(replace(weights, tensors=large), "bf16", KERNELS)


def test_bfloat16_weights_are_rounded_as_torchs(weights: Weights) -> None:
    """To nearest, ties to even; and which values a lane holds."""
    plain_norms = {k: np.ones_like(v) if "norm" in k and k.endswith("weight") else v for k, v in weights.tensors.items()}
    _, chunks = pack(replace(weights, tensors=plain_norms), "bf16", KERNELS)
    words = chunks[1, 8 + 5, :16384].view(np.uint16).reshape(32, 32, 8)  # of the feed-forward columns 160 to 191
    rounded = torch.from_numpy(weights.tensors["layers.1.fc1.weight"]).bfloat16().view(torch.int16).numpy().view(np.uint16)
    for lane in (0, 13, 31):
        g, t = lane // 4, lane % 4
        row = rounded[160 + 8 * 2 + g]  # the third tile of 8 columns, its second pair of steps
        assert words[2 * 4 + 1, lane].tolist() == [row[32 + 2 * t + i] for i in (0, 1, 8, 9, 16, 17, 24, 25)]


FILES = ("common/cluster.cuh", "refiner/chunk.cuh", "refiner/pose.cuh", "refiner/split.cuh", "refiner/tiles.cuh")
SYNCHRONISATIONS = synchronisations(*FILES)
# Two can't be shown to be needed here: all emulated blocks have started before the first write to another one's shared memory,
# and lanes that diverged do no harm to a product.
NOT_SHOWN = ("group.barrier();", "__syncwarp();")


def is_shown(place: Synchronisation) -> bool:
    lines = (CUDA / place.file).read_text().splitlines()[place.line - 2 : place.line]
    return not any("only once that block has started" in line or "may have diverged" in line for line in lines)


SHOWN = [i for i, place in enumerate(SYNCHRONISATIONS) if is_shown(place)]


def test_all_synchronisations_but_two_are_tried() -> None:
    written = r"__sync\w+\(|group\.barrier\(|cp_async_wait_group<"
    files = [file for folder in ("common", "refiner") for file in (CUDA / folder).glob("*.cu*")]
    count = sum(len(re.findall(written, file.read_text())) for file in files)
    assert len(SYNCHRONISATIONS) == count
    assert tuple(s.text for i, s in enumerate(SYNCHRONISATIONS) if i not in SHOWN) == NOT_SHOWN[::-1]


@pytest.fixture(scope="module")
def droppable(build_for_host: Callable[..., ctypes.CDLL], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels, with synchronisations that can be left out."""
    return build_for_host(*HARNESS, with_droppable_synchronisations(tmp_path_factory.mktemp("droppable"), *FILES))


@pytest.fixture(scope="module")
def exact(weights: Weights, poses: np.ndarray) -> Result:
    return TorchBackend(weights, dtype=torch.float64).run(plain(poses[:10]))


@pytest.mark.parametrize("index", SHOWN, ids=lambda i: str(SYNCHRONISATIONS[i]))
def test_every_synchronisation_is_needed(
    droppable: ctypes.CDLL, weights: Weights, poses: np.ndarray, exact: Result, index: int
) -> None:
    """Without it some schedule gives a wrong result, which shows that this harness can fail."""
    batch = plain(poses[:10])
    variants = {"tiles.cuh": ("tiles",), "split.cuh": ("cluster", "grid"), "cluster.cuh": ("grid",)}
    file = Path(SYNCHRONISATIONS[index].file).name

    def is_wrong(variant: str, schedule: str) -> bool:
        try:
            found = on_host(droppable, weights, batch, variant, schedule=schedule, seed=1)
        except RuntimeError:
            return True
        close = np.allclose(found.joints, exact.joints, atol=0.5) and np.allclose(found.sigma, exact.sigma, rtol=0.1)
        return not close

    droppable.host_drop_synchronisation(index)
    try:
        assert any(is_wrong(variant, schedule) for variant in variants.get(file, VARIANTS) for schedule in SCHEDULES)
    finally:
        droppable.host_drop_synchronisation(-1)


def test_with_all_synchronisations_it_is_right(
    droppable: ctypes.CDLL, weights: Weights, poses: np.ndarray, exact: Result
) -> None:
    for variant in VARIANTS:
        found = on_host(droppable, weights, plain(poses[:10]), variant)
        np.testing.assert_allclose(found.joints, exact.joints, atol=0.5)
