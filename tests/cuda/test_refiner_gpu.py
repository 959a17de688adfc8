"""Backend ``cuda`` on a GPU, against the torch reference in float64."""

from __future__ import annotations

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

if not os.environ.get("JOINTBERT_NEEDS_GPU"):  # where it is set, what is missing fails
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU", allow_module_level=True)
    pytest.importorskip("jointbert._cuda", reason="built without GPU kernels")

import jointbert  # noqa: E402
from jointbert import JointbertWarning, Refiner, Status, refine  # noqa: E402
from jointbert.contract import Batch  # noqa: E402
from jointbert.cuda.arrays import read  # noqa: E402
from jointbert.cuda.graph_session import GraphSession  # noqa: E402
from jointbert.cuda.module import load_module  # noqa: E402
from jointbert.runtimes.cuda import CudaBackend, DeviceBatch, DeviceResult  # noqa: E402
from jointbert.runtimes.torch import TorchBackend  # noqa: E402
from jointbert.weights import load_weights  # noqa: E402
from tests.support.readme import python_block  # noqa: E402

# Under a sanitizer every launch takes long.
if os.environ.get("JOINTBERT_MEASURED"):
    CudaBackend.measured_sizes = (int(os.environ["JOINTBERT_MEASURED"]),)

TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}
VARIANTS = {"cluster": 0, "grid": 1, "tiles": 2}


@pytest.fixture(scope="module", params=TORCH)
def backend(request: pytest.FixtureRequest) -> CudaBackend:
    precision = request.param
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU multiplies no bfloat16")
    return CudaBackend(load_weights(), precision=precision)


@pytest.fixture(scope="module")
def many(poses: np.ndarray) -> np.ndarray:
    """4100 different poses."""
    rng = np.random.default_rng(0)
    return np.resize(poses, (4100, 14, 3)) + rng.normal(0, 3, (4100, 14, 3))


def on_gpu(backend: CudaBackend, joints: np.ndarray, variant: int = -1) -> tuple[np.ndarray, np.ndarray]:
    given, library = read(torch.from_numpy(joints).cuda(), "joints")
    n = len(joints)
    out = DeviceResult(
        library.empty((n, 14, 3), given.dtype),
        library.empty((n, 14), "float32"),
        library.empty((n,), "uint8"),
        library.empty((n,), "float32"),
        library.empty((n,), "float32"),
    )
    batch = DeviceBatch(given, np.arange(14, dtype=np.int32), 1.0, False, None, None, None)
    backend.enqueue(batch, out, library.cuda_stream, variant)
    assert (library.result(out.status).cpu().numpy() == Status.REFINED).all()
    return library.result(out.joints).cpu().numpy(), library.result(out.sigma).cpu().numpy()


@pytest.mark.parametrize("count", [1, pytest.param(7, marks=pytest.mark.sanitize), 64, 300])
def test_equals_the_reference(backend: CudaBackend, many: np.ndarray, count: int) -> None:
    weights = load_weights()
    batch = Batch(many[:count], np.arange(14, dtype=np.int32), 1.0, None, None, None, None)
    exact = TorchBackend(weights, dtype=torch.float64).run(batch)
    torchs = TorchBackend(weights, dtype=TORCH[backend.precision]).run(batch)
    joints, sigma = on_gpu(backend, many[:count])
    for found, name in ((joints, "joints"), (sigma, "sigma")):
        right, own = getattr(exact, name), np.abs(getattr(torchs, name) - getattr(exact, name)).max()
        assert np.abs(found - right).max() <= 2 * own + 1e-5, name


def test_every_variant_and_batch_gives_the_same_bits(backend: CudaBackend, many: np.ndarray) -> None:
    joints, sigma = on_gpu(backend, many)  # more than a wave of tiles
    clusters = backend.refiner(0).clusters
    most = {"cluster": 1000 if clusters else 0, "grid": torch.cuda.get_device_properties(0).multi_processor_count // 8 * 8}
    for name, variant in VARIANTS.items():
        for count in (1, 9, 60):
            if count > most.get(name, 1000):
                continue
            again = on_gpu(backend, many[:count], variant)
            assert again[0].tobytes() == joints[:count].tobytes(), (name, count)
            assert again[1].tobytes() == sigma[:count].tobytes(), (name, count)


@pytest.mark.sanitize
def test_two_poses_a_warp(backend: CudaBackend, many: np.ndarray) -> None:
    """More poses than all processors' warps: another kernel."""
    count = 8 * torch.cuda.get_device_properties(0).multi_processor_count + 3
    joints, _ = on_gpu(backend, np.resize(many, (count, 14, 3)), VARIANTS["tiles"])
    few, _ = on_gpu(backend, many[:9], VARIANTS["tiles"])
    assert joints[:9].tobytes() == few.tobytes()
    assert joints[-1].tobytes() == on_gpu(backend, many[[(count - 1) % len(many)]], VARIANTS["tiles"])[0].tobytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_stay_on_the_gpu(poses: np.ndarray, dtype: torch.dtype) -> None:
    centred = torch.from_numpy(poses[:6] - poses[:6].mean(1, keepdims=True)).to(dtype)
    expected = refine(centred, return_details=True)
    given = centred.cuda().view(2, 3, 14, 3)
    before = given.clone()
    found = refine(given, return_details=True)
    assert (found.joints.device, found.joints.dtype, found.joints.shape) == (given.device, dtype, given.shape)
    assert torch.equal(given, before)
    step = 2 * torch.finfo(dtype).eps * 150
    torch.testing.assert_close(found.joints.cpu().double().view(6, 14, 3), expected.joints.double(), atol=0.05 + step, rtol=0)
    torch.testing.assert_close(found.sigma.cpu().double().view(6, 14), expected.sigma.double(), rtol=0.05, atol=0.05)


@pytest.mark.sanitize
def test_optional_arguments(poses: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    confidence, visible = rng.random((5, 14)), rng.random((5, 14)) < 0.8
    error, few = rng.uniform(1, 30, (5, 14)), poses[:5]
    for hand in ("left", ["left", "right", "right", "left", "right"]):
        expected = refine(few, confidence=confidence, visible=visible, error_mm=error, hand=hand)
        tensors = (torch.from_numpy(x).cuda() for x in (confidence, visible, error))
        named = dict(zip(("confidence", "visible", "error_mm"), tensors, strict=True))
        found = refine(torch.from_numpy(few).cuda(), hand=hand, check=True, **named)
        np.testing.assert_allclose(found.cpu().numpy(), expected, atol=0.05)
    with pytest.raises(ValueError, match="visible: got integers other than 0 and 1"):
        refine(torch.from_numpy(few).cuda(), visible=torch.full((len(few), 14), 2).cuda(), check=True)
    with pytest.warns(JointbertWarning, match="looks like metres"):
        refine(torch.from_numpy(few / 1000).cuda(), check=True)


def test_it_runs_on_the_current_stream(poses: np.ndarray) -> None:
    """The launch follows the stream's earlier work, and the host does not wait."""
    refiner = Refiner()
    given = torch.from_numpy(poses[:8]).cuda()
    expected = refiner(given)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(given)
        torch.cuda._sleep(100_000_000)
        late.copy_(given)
        found = refiner(late)
    assert not stream.query()
    stream.synchronize()
    assert torch.equal(found, expected)


def test_host_arguments_do_not_synchronise(poses: np.ndarray) -> None:
    refiner, few = Refiner(), poses[:4]
    said = {"confidence": np.full((4, 14), 0.7), "error_mm": np.full(14, 9.0), "hand": ["left", "right"] * 2}
    given = torch.from_numpy(few).cuda()
    refiner(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = refiner(given, **said)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(found.cpu().numpy(), refine(few, **said), atol=0.05)


@pytest.mark.parametrize("warm", [True, False])
def test_in_a_graph_of_torchs(poses: np.ndarray, warm: bool) -> None:
    """The first call, too, which uploads weights and measures during the capture."""
    refiner = Refiner()
    given = torch.from_numpy(poses[:8]).cuda()
    if warm:
        refiner(given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = refiner(given)
    given.copy_(torch.from_numpy(poses[8:16]))
    graph.replay()
    assert torch.equal(out, refiner(torch.from_numpy(poses[8:16]).cuda()))


def test_numpy_in_and_out(poses: np.ndarray, many: np.ndarray) -> None:
    refiner = Refiner(backend="cuda")
    np.testing.assert_allclose(refiner(poses), refine(poses), atol=0.05)
    on_the_gpu = refiner(torch.from_numpy(many).cuda()).cpu().numpy()
    np.testing.assert_array_equal(refiner(many), on_the_gpu)
    np.testing.assert_array_equal(refiner(many[17]), on_the_gpu[17])


@pytest.mark.sanitize
def test_a_session_captures_torch() -> None:
    session = GraphSession({"x": ((16,), "float32")}, {"y": ((4,), "float32")}, rows=64)
    layer = torch.nn.Linear(16, 4).cuda().requires_grad_(False)
    x, y = (torch.as_tensor(a, device="cuda") for a in (session.input("x"), session.output("y")))
    torch.addmm(layer.bias, x, layer.weight.T, out=y)  # cuBLAS allocates its workspace
    torch.cuda.synchronize()

    def enqueue(batch: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(session.stream)):
            torch.addmm(layer.bias, x[:batch], layer.weight.T, out=y[:batch])

    session.capture(enqueue, batches=(1, 64))
    given = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    expected = layer(torch.from_numpy(given).cuda()).cpu().numpy()
    np.testing.assert_allclose(session(x=given)["y"], expected, atol=1e-5)


def test_dlpack_alone(poses: np.ndarray) -> None:
    tensor = torch.from_numpy(poses[:3]).cuda()

    class OnlyDlpack:
        def __dlpack_device__(self) -> tuple[int, int]:
            return tensor.__dlpack_device__()

        def __dlpack__(self, **options: object) -> object:
            return tensor.__dlpack__(**options)

    found = refine(OnlyDlpack())
    assert torch.equal(torch.from_dlpack(found), refine(tensor))
    assert torch.equal(torch.as_tensor(found, device="cuda"), refine(tensor))


def test_memory_is_freed(poses: np.ndarray) -> None:
    tensor = torch.from_numpy(poses[:3]).cuda()
    refiner = Refiner()

    class OnlyInterface:
        __cuda_array_interface__ = tensor.__cuda_array_interface__

    refiner(OnlyInterface())
    free = torch.cuda.mem_get_info()[0]
    for _ in range(200):
        refiner(OnlyInterface())
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)


def test_the_module_knows_this_gpu() -> None:
    count, why = load_module().devices()
    assert count == torch.cuda.device_count()
    assert why == ""
    assert jointbert.Refiner(backend="cuda")


def test_the_readme_example_runs(poses: np.ndarray) -> None:
    names = {"jointbert": jointbert, "joints": torch.from_numpy(poses), "array": poses}
    exec(python_block("gpu-poses"), names)
    np.testing.assert_allclose(names["better"], refine(poses), atol=0.05)


def test_the_variant_is_chosen_by_measurement(backend: CudaBackend) -> None:
    refiner = backend.refiner(0)
    sizes, variants, times = zip(*refiner.measured, strict=True)
    assert sizes == backend.measured_sizes
    assert set(variants) <= set(VARIANTS.values())
    assert all(0 < us < 1e5 for us in times)
    assert [refiner.choose(n) for n in sizes] == list(variants)
