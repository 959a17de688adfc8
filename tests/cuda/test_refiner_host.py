"""refiner.cu, compiled for the host, against the torch twin in float64."""

from __future__ import annotations

import ctypes
import re
import runpy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jointbert.contract import Batch, Result, Status  # noqa: E402
from jointbert.runtimes.cuda.packing import pack  # noqa: E402
from jointbert.runtimes.torch import TorchBackend  # noqa: E402
from jointbert.weights import Weights, load_weights  # noqa: E402
from tests.cuda.conftest import meetings  # noqa: E402

HARNESS = ("refiner_host.cpp", "refiner.cu")
CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
PRECISIONS = {"f16": torch.float16, "bf16": torch.bfloat16}
VARIANTS = {"cluster": 0, "grid": 1, "tiles": 2}
SCHEDULES = {"forward": 0, "reverse": 1, "random": 2, "uneven": 3}
NUMBERS = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, np.dtype(np.float16): 2}
INVALID, NOT_SUPPORTED = 1, 801  # cudaErrorInvalidValue, cudaErrorNotSupported


@dataclass(frozen=True)
class Device:
    """What the host plays."""

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
    return first_layers(load_weights(random_weights), 2)


@pytest.fixture(scope="module")
def given(poses: np.ndarray) -> Batch:
    """A left hand, hidden joints, stated errors and confidences, another order; of ten frames three can't be refined."""
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

    ends, chunks = pack(weights, precision)
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


def assert_equals_twin(found: Result, batch: Batch, weights: Weights, precision: str) -> None:
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


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_twin(
    library: ctypes.CDLL, weights: Weights, poses: np.ndarray, given: Batch, variant: str, precision: str
) -> None:
    for batch in (plain(poses[:3]), given):
        assert_equals_twin(on_host(library, weights, batch, variant, precision), batch, weights, precision)


def test_the_shipped_weights(library: ctypes.CDLL, poses: np.ndarray) -> None:
    shipped, batch = load_weights("nyu14"), plain(poses[:2])
    found = on_host(library, shipped, batch, "cluster")
    assert_equals_twin(found, batch, shipped, "f16")
    exact = TorchBackend(shipped, dtype=torch.float64).run(batch)
    assert np.abs(found.joints - exact.joints).max() < 0.03  # mm


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_coordinates_of_any_type(library: ctypes.CDLL, weights: Weights, poses: np.ndarray, dtype: type) -> None:
    batch = plain((poses[:2] - poses[:2].mean(1, keepdims=True)).astype(dtype))
    exact = on_host(library, weights, plain(batch.joints.astype(np.float64)), "tiles")
    found = on_host(library, weights, batch, "tiles")
    assert found.joints.dtype == dtype
    through = np.float64 if dtype is np.float64 else np.float32  # a double becomes a half by way of a float
    np.testing.assert_array_equal(found.joints, exact.joints.astype(through).astype(dtype))
    np.testing.assert_array_equal(found.sigma, exact.sigma)


def test_bfloat16_coordinates(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
    centred = torch.from_numpy(poses[:2] - poses[:2].mean(1, keepdims=True)).bfloat16()
    found = on_host(library, weights, plain(centred.view(torch.int16).numpy().view(np.float16)), "tiles", number=3)
    exact = on_host(library, weights, plain(centred.double().numpy()), "tiles")
    back = torch.from_numpy(found.joints.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(back, torch.from_numpy(exact.joints).float().bfloat16())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_alone_in_a_batch_and_in_any_variant_bit_for_bit(
    library: ctypes.CDLL, weights: Weights, given: Batch, precision: str
) -> None:
    whole = on_host(library, weights, given, "tiles", precision)
    for variant, device in (("cluster", HOPPER), ("grid", HOPPER), ("tiles", ONE_PROCESSOR), ("cluster", Device(clusters=1))):
        assert_same_bits(on_host(library, weights, given, variant, precision, device), whole)
    for i in (0, 9):
        fields = ("joints", "mirror", "visible", "confidence", "error_mm")
        one = replace(given, **{f: getattr(given, f)[i : i + 1] for f in fields})
        alone = on_host(library, weights, one, "cluster", precision)
        assert alone.joints.tobytes() == whole.joints[i].tobytes()
        assert alone.sigma.tobytes() == whole.sigma[i].tobytes()


@pytest.mark.parametrize(("schedule", "seed"), [("reverse", 0), ("random", 1), ("random", 2), ("uneven", 3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_schedule_gives_the_same(
    library: ctypes.CDLL, weights: Weights, given: Batch, variant: str, schedule: str, seed: int
) -> None:
    first = on_host(library, weights, given, variant)
    assert_same_bits(first, on_host(library, weights, given, variant, schedule=schedule, seed=seed))


@pytest.mark.parametrize("count", [1, 8, 9, 17, 40])
def test_teams_and_tiles_that_are_not_full(library: ctypes.CDLL, weights: Weights, poses: np.ndarray, count: int) -> None:
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


def test_barriers_are_as_many_as_the_table_says(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
    barriers = runpy.run_path(str(CUDA.parents[1] / "scripts" / "kernel_resources.py"))["barriers"]

    def counted(variant: str) -> tuple[int, int]:
        return meetings(library, lambda: on_host(library, weights, plain(poses[:1]), variant))

    assert counted("tiles") == (barriers("tiles<1>", layers=2)[0], 0)
    assert counted("cluster") == (0, barriers("cluster<4>", layers=2)[0])
    # A grid's barrier is two of each block's, around a wait in global memory.
    assert counted("grid") == (2 * 8 * barriers("grid<4>", layers=2)[0], 0)


def test_what_is_unknown(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
    """Confidences outside [0, 1] and errors that are not positive count as none."""
    confidence, error = np.full((1, 14), np.nan, np.float32), np.full((1, 14), np.nan, np.float32)
    none = on_host(library, weights, plain(poses[:1]), "tiles")
    for c, e in ((np.nan, np.nan), (-0.1, 0), (1.1, -3)):
        confidence[:], error[:] = c, e
        given = replace(plain(poses[:1]), confidence=confidence, error_mm=error)
        assert_same_bits(on_host(library, weights, given, "tiles"), none)


def test_a_device_is_asked_only_for_what_it_has(library: ctypes.CDLL, weights: Weights, poses: np.ndarray) -> None:
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
        pack(replace(weights, sizes={**weights.sizes, "width": 64}), "f16")
    large = {**weights.tensors, "layers.1.fc1.weight": weights.tensors["layers.1.fc1.weight"] * 1e6}
    with pytest.raises(ValueError, match="too large for f16, or is no number; take precision 'bf16'"):
        pack(replace(weights, tensors=large), "f16")
    pack(replace(weights, tensors=large), "bf16")


def test_bfloat16_weights_are_torchs(weights: Weights) -> None:
    """Rounded to the nearest, ties to even; where a lane's values come from."""
    plain_norms = {k: np.ones_like(v) if "norm" in k and k.endswith("weight") else v for k, v in weights.tensors.items()}
    _, chunks = pack(replace(weights, tensors=plain_norms), "bf16")
    words = chunks[1, 8 + 5, :16384].view(np.uint16).reshape(32, 32, 8)  # of the feed-forward columns 160 to 191
    rounded = torch.from_numpy(weights.tensors["layers.1.fc1.weight"]).bfloat16().view(torch.int16).numpy().view(np.uint16)
    for lane in (0, 13, 31):
        g, t = lane // 4, lane % 4
        row = rounded[160 + 8 * 2 + g]  # the third tile of 8 columns, its second pair of steps
        assert words[2 * 4 + 1, lane].tolist() == [row[32 + 2 * t + i] for i in (0, 1, 8, 9, 16, 17, 24, 25)]


# Where threads, warps or blocks wait for each other or for a copy. Two places can't be proven needed here: all blocks have
# begun before the first write to another one's shared memory, and lanes that parted do no harm to a product.
NOT_PROVEN = ("one that has not begun.\n    team.barrier();", "__syncwarp();     // lanes may have parted")


def waits(file: str) -> list[tuple[str, int, str]]:
    """File, place and text of each."""
    text = (CUDA / file).read_text()
    places = [text.index(place) for place in NOT_PROVEN if place in text]
    found = re.finditer(r"__sync(?:threads|warp)\(\);|team\.barrier\(\);|wait_copies<[^>]*>\(\);", text)
    return [(file, m.start(), m.group()) for m in found if not any(0 <= m.start() - at < 40 for at in places)]


WAITS = waits("refiner.cu") + waits("warp.cuh")


def test_every_wait_but_two_is_tried() -> None:
    written = re.findall(r"__sync\w+\(|team\.barrier\(|wait_copies<", (CUDA / "refiner.cu").read_text())
    assert len([w for w in WAITS if w[0] == "refiner.cu"]) == len(written) - len(NOT_PROVEN)
    assert [w[2] for w in WAITS if w[0] == "warp.cuh"] == ["__syncthreads();"] * 2  # of a grid's barrier


@pytest.mark.parametrize("index", range(len(WAITS)))
def test_a_dropped_wait_is_caught(
    build_for_host: Callable[..., ctypes.CDLL], weights: Weights, poses: np.ndarray, index: int
) -> None:
    """Each of the file's waits is needed, and this harness can fail."""
    file, start, text = WAITS[index]
    broken = build_for_host(*HARNESS, lambda source: source[:start] + source[start + len(text) :], file)
    batch = plain(poses[:10])
    exact = TorchBackend(weights, dtype=torch.float64).run(batch)

    def is_wrong(variant: str, schedule: str) -> bool:
        try:
            found = on_host(broken, weights, batch, variant, schedule=schedule, seed=1)
        except RuntimeError:
            return True
        close = np.allclose(found.joints, exact.joints, atol=0.5) and np.allclose(found.sigma, exact.sigma, rtol=0.1)
        return not close

    assert any(is_wrong(variant, schedule) for variant in VARIANTS for schedule in SCHEDULES)
