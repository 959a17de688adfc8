"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jointbert
from jointbert.bench import bench
from jointbert.camera import NYU
from jointbert.inputs.arguments import check_threads
from jointbert.inputs.textformat import read_joints, write_joints
from jointbert.runtimes import BACKENDS


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "jointbert.cli", *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A prediction and its ground truth, u v d."""
    demo = jointbert.load_demo()
    prediction, truth = tmp_path / "prediction.txt", tmp_path / "truth.txt"
    write_joints(prediction, demo.predictions[:40], "uvd", NYU)
    write_joints(truth, demo.groundtruth[:40], "uvd", NYU)
    return prediction, truth


def test_refine_writes_what_refine_gives(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "refined.txt"
    assert "40 of 40 frames refined" in run("refine", files[0], out, "--format", "uvd", "--camera", "nyu").stdout
    given = read_joints(files[0], "uvd", NYU)
    np.testing.assert_allclose(read_joints(out, "uvd", NYU), jointbert.refine(given), atol=2e-3)
    run("refine", files[0], out, "--format", "uvd", "--camera", "588.03,587.07,320,240", "--error-mm", 12)
    np.testing.assert_allclose(read_joints(out, "uvd", NYU), jointbert.refine(given, error_mm=12), atol=2e-3)


def test_refine_in_x_y_z_and_another_order(tmp_path: Path) -> None:
    poses = jointbert.load_demo().predictions[:3] * [-1, 1, 1]
    poses[0, 4] = np.nan
    write_joints(tmp_path / "in.txt", poses[:, ::-1], "xyz")
    run(
        "refine",
        tmp_path / "in.txt",
        tmp_path / "out.txt",
        "--format",
        "xyz",
        "--hand",
        "left",
        "--order",
        ", ".join(reversed(jointbert.JOINT_NAMES)),
    )
    refined = read_joints(tmp_path / "out.txt", "xyz")[:, ::-1]
    np.testing.assert_allclose(refined, jointbert.refine(poses, hand="left"), atol=2e-3)
    assert np.isfinite(refined).all()


def test_evaluate(files: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("--format", "uvd", "--camera", "nyu")
    report = tmp_path / "report.json"
    shown = run("evaluate", files[0], "--groundtruth", files[1], *arguments, "--refine", "--json", report).stdout
    demo = jointbert.load_demo()
    before = np.linalg.norm(demo.predictions[:40] - demo.groundtruth[:40], axis=-1)
    after = np.linalg.norm(jointbert.refine(demo.predictions[:40]) - demo.groundtruth[:40], axis=-1)
    figures = json.loads(report.read_text())["all frames"]
    assert figures["before"]["mean_mm"] == pytest.approx(before.mean(), abs=1e-3)
    assert figures["after"]["mean_mm"] == pytest.approx(after.mean(), abs=1e-3)
    assert figures["after"]["by_joint_mm"]["thumb_tip"] == pytest.approx(after[:, 8].mean(), abs=1e-3)
    assert figures["before"]["max_within"]["20"] == pytest.approx((before.max(1) <= 20).mean())
    assert f"{before.mean():.2f}" in shown
    assert f"{after.mean():.2f}" in shown
    assert "wrist_side_b" in shown
    assert "only frames 4376" not in shown
    plain = run("evaluate", files[0], "--groundtruth", files[1], *arguments).stdout
    assert "after" not in plain


def test_evaluate_says_what_the_weights_have_seen(tmp_path: Path) -> None:
    pose = jointbert.load_demo().groundtruth[:1]
    path = tmp_path / "nyu.txt"
    write_joints(path, np.repeat(pose, 8252, 0), "xyz")
    shown = run("evaluate", path, "--groundtruth", path, "--format", "xyz", "--refine", "--threads", 2).stdout
    assert "only frames 4376-8251 show" in shown
    assert "4376-8251 (subject 2, never seen) (3876)" in shown
    write_joints(path, np.repeat(pose, 4376, 0), "xyz")
    shown = run("evaluate", path, "--groundtruth", path, "--format", "xyz").stdout
    assert "only frames 4376-8251 show" in shown
    assert "2440-4375 (subject 2, selected on) (1936)" in shown
    assert "never seen" not in shown


def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "hand.png"
    shown = run("demo", "--picture", picture).stdout
    assert "generated hand" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "expected 0 to 255" in run("demo", "--picture", picture, "--frame", 256, code=2).stderr


def test_info() -> None:
    shown = run("info").stdout
    for part in (
        jointbert.__version__,
        "backend native: available",
        "1.59M parameters",
        "layout: ",
        "license: Apache-2.0",
        "trained_on: NYU test frames 0-2439",
    ):
        assert part in shown
    assert run("--version").stdout == f"jointbert {jointbert.__version__}\n"


def test_export(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run("export", tmp_path / "refiner.onnx")
    assert (tmp_path / "refiner.onnx").stat().st_size > 6e6


def test_bench_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    """Its cores and threads; what one backend can't run the others do."""
    assert check_threads(100_000) == 256  # more may end the process
    with pytest.raises(ValueError, match="weights"):
        bench("no such weights", [1], 1, 0)
    torch = pytest.importorskip("torch")
    from jointbert.models.refiner import JointRefiner, RefinerConfig

    JointRefiner(RefinerConfig(layers=1, width=64)).save(tmp_path / "narrow.safetensors")
    before = os.sched_getaffinity(0), torch.get_num_threads()
    narrow = bench(tmp_path / "narrow.safetensors", [1], 1, 0)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before
    assert {row.call for row in narrow.rows} == {"torch"}
    assert "width" in narrow.missing["native"]


def test_bench_times_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    output = run("bench", "--batch", "1,3", "--seconds", "0", "--json", file).stdout
    content = json.loads(file.read_text())
    assert {row["batch"] for row in content["rows"] if row["call"] == "native"} == {1, 3}
    assert all(0 < row["p50_us"] <= row["p99_us"] and row["runs"] >= 20 for row in content["rows"])
    assert {row["call"].split(",")[0] for row in content["rows"]} | content["missing"].keys() == set(BACKENDS) - {"onnxruntime"}
    for name in content["missing"]:
        assert f"not available: {name}: " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("refine", "none.txt", "out.txt", "--format", "xyz"), "none.txt: No such file"),
        (("refine", "in.txt", "out.txt", "--format", "uvd"), "needs a camera"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--camera", "nyu"), "--camera: x y z needs no camera"),
        (("refine", "in.txt", "out.txt", "--format", "uvd", "--camera", "1,2"), "camera: got '1,2'"),
        (("refine", "in.txt", "out.txt", "--format", "obj"), "format: got 'obj'"),
        (("refine", "in.txt", "no/out.txt", "--format", "xyz"), "does not exist"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--hand", "both"), "hand: got 'both'"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--order", "x,y"), "order: 'x' is no joint name"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--weights", "big"), "weights: 'big' is not shipped"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--backend", "gpu"), "backend: got 'gpu'"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--threads", "0"), "threads: got 0"),
        (("bench", "--batch", "1;2"), "batch: got '1;2'; expected sizes with commas"),
        (("bench", "--batch", "1,0"), "batch: got [1, 0]; expected sizes of at least 1"),
        (("bench", "--threads", "0"), "threads: got 0"),
        (("bench", "--json", "no/x.json"), "does not exist"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--error-mm", "-1"), "error_mm: got -1"),
        (("refine", "short.txt", "out.txt", "--format", "xyz"), "line 1 has 3 numbers; expected 42"),
        (("refine", ".", "out.txt", "--format", "xyz"), "Is a directory"),
        (("evaluate", "in.txt", "--groundtruth", "two.txt", "--format", "xyz"), "expected the same number"),
        (("evaluate", "in.txt", "--groundtruth", "in.txt", "--format", "xyz", "--json", "no/x.json"), "does not exist"),
        (("refine", "in.txt", ".", "--format", "xyz"), "is a folder"),
        (("refine", "in.txt", "out.txt"), "Missing option '--format'"),
        (("refine", "in.txt", "out.txt", "--format", "xyz", "--threads", "many"), "--threads"),
        (("refine", "in.txt", "out.txt", "--colour", "red"), "--colour"),
        (("improve", "in.txt"), "improve"),
        (("info", "--weights", "x.safetensors"), "there is no file"),
        (("evaluate", "in.txt", "--groundtruth", "in.txt", "--format", "xyz", "--sequence"), "--sequence: without --refine"),
        (
            ("evaluate", "in.txt", "--groundtruth", "in.txt", "--format", "xyz", "--error-mm", "3"),
            "--error-mm: without --refine",
        ),
        (("demo", "--frame", "3"), "--frame: without --picture"),
        (("export", "x.onnx", "--weights", "nyu14", "--estimator", "x.safetensors"), "--weights: an estimator's file holds"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    pose = jointbert.load_demo().groundtruth[:2].astype(np.float64)
    write_joints(tmp_path / "in.txt", pose[:1], "xyz")
    write_joints(tmp_path / "two.txt", pose, "xyz")
    (tmp_path / "short.txt").write_text("1 2 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(jointbert.__file__).parents[1]))
    error = run(*arguments, code=2).stderr
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1


def test_frames_that_are_not_refined_keep_their_line(tmp_path: Path) -> None:
    poses = jointbert.load_demo().predictions[:3].astype(np.float64)
    write_joints(tmp_path / "in.txt", poses, "uvd", NYU)
    lines = (tmp_path / "in.txt").read_text().splitlines()
    lines[1] = "300.98765 99.3 nan " * 11 + "1 2 0 " * 3  # two kinds of missing, more decimals than are written
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    result = run("refine", tmp_path / "in.txt", tmp_path / "out.txt", "--format", "uvd", "--camera", "nyu")
    assert result.stderr.startswith("Warning: joints: 1 of 3 frames were returned unchanged")
    assert "2 of 3 frames refined" in result.stdout
    written = (tmp_path / "out.txt").read_text().splitlines()
    assert written[1] == lines[1]
    assert written[0] != lines[0]


def test_a_file_can_be_refined_in_place(files: tuple[Path, Path], tmp_path: Path) -> None:
    run("refine", files[0], tmp_path / "out.txt", "--format", "uvd", "--camera", "nyu", "--threads", 2 * 10**20)
    run("refine", files[0], files[0], "--format", "uvd", "--camera", "nyu")
    assert files[0].read_text() == (tmp_path / "out.txt").read_text()


def test_before_and_after_are_compared_on_the_same_joints(tmp_path: Path) -> None:
    demo = jointbert.load_demo()
    prediction = demo.predictions[:60].astype(np.float64)
    masked = np.random.default_rng(0).random((60, 14)) < 0.3
    prediction[masked] = np.nan
    write_joints(tmp_path / "in.txt", prediction, "xyz")
    write_joints(tmp_path / "truth.txt", demo.groundtruth[:60], "xyz")
    arguments = ("--groundtruth", tmp_path / "truth.txt", "--format", "xyz", "--refine", "--json", tmp_path / "r.json")
    shown = run("evaluate", tmp_path / "in.txt", *arguments).stdout
    errors = np.linalg.norm(jointbert.refine(prediction) - demo.groundtruth[:60], axis=-1)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["all frames"]["after"]["mean_mm"] == pytest.approx(errors[~masked].mean(), abs=2e-3)
    assert report["filled_in"] == {"joints": masked.sum(), "mean_mm": pytest.approx(errors[masked].mean(), abs=2e-3)}
    assert f"{masked.sum()} missing joints were filled in, with a mean error of" in shown


def test_nothing_given_is_help() -> None:
    result = subprocess.run([sys.executable, "-m", "jointbert.cli"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stdout.count("\n") > 10
    assert "evaluate" in result.stdout
    assert not result.stderr


def test_a_warning_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """However many calls warn: bench makes thousands."""
    from jointbert.cli.common import one_sentence

    with one_sentence():
        for _ in range(3):
            jointbert.refine(jointbert.load_demo().predictions[:2] / 1000)
    assert capsys.readouterr().err.count("Warning: joints: ") == 1


def test_every_backend_stands_in_the_help() -> None:
    text = " ".join(run("refine", "--help").stdout.split())
    for name in BACKENDS:
        assert name in text
    assert "| `native`" in run("info", "--capabilities").stdout
