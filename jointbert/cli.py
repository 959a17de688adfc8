"""The command line: ``jointbert refine | evaluate | estimate | demo | bench | export | info``.

Errors are one sentence and exit code 2.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jointbert import __version__
from jointbert.backends import Status
from jointbert.camera import Camera
from jointbert.checks import HANDS
from jointbert.evaluation.metrics import NYU_RANGES, NYU_TEST_FRAMES, SELECTED, Accuracy, accuracy, joint_errors, relative_gain
from jointbert.evaluation.textformat import read_frames, read_joints, write_joints
from jointbert.refine import Refiner
from jointbert.skeleton import JOINT_NAMES, ORDERS
from jointbert.stream import Refined

app = typer.Typer(add_completion=False, help="Refines 3D hand poses of 14 joints.", rich_markup_mode=None)

FormatOption = Annotated[str, typer.Option("--format", help="What a line holds: uvd (pixels, pixels, mm) or xyz (mm).")]
CameraOption = Annotated[str | None, typer.Option(help="For uvd: nyu, or fx,fy,cx,cy in pixels.")]
HandOption = Annotated[str, typer.Option(help=f"Whose hands: {' or '.join(HANDS)}.")]
OrderOption = Annotated[str, typer.Option(help=f"Joint order of the files: {', '.join(ORDERS)}, or 14 names with commas.")]
ErrorOption = Annotated[float | None, typer.Option(help="Expected joint error of the method, mm; inferred without it.")]
SequenceOption = Annotated[
    bool, typer.Option("--sequence", help="The file is one video of one person: refine each frame with those around it.")
]
WeightsOption = Annotated[str, typer.Option(help="Shipped weights' name, a .safetensors file, or an .onnx one.")]
BackendOption = Annotated[str, typer.Option(help="auto, native, cuda, onnxruntime (for an .onnx file) or torch.")]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads.")]


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turns what a user can get wrong into one sentence and exit code 2; warnings into lines."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
            message = None
        except BrokenPipeError:
            raise  # the reader of the output has gone: click ends quietly
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            message = str(error)
    for warning in caught:
        typer.echo(f"Warning: {warning.message}", err=True)
    if message is not None:
        typer.echo(f"Error: {message}", err=True)
        raise typer.Exit(2)


@contextmanager
def _progress(frames: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with typer.progressbar(length=frames, label="refining", file=sys.stderr) as bar:
        yield bar.update


def _camera(format: str, camera: str | None) -> Camera | None:
    if camera is not None and format == "xyz":
        raise ValueError("--camera: x y z needs no camera; leave it out")
    return None if camera is None else Camera.parse(camera)


def _order(order: str) -> str | list[str]:
    return [name.strip() for name in order.split(",")] if "," in order else order


def _check_folder(*files: Path | None) -> None:
    """Long work must not end at a folder that was never there."""
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise ValueError(f"{file} is a folder; expected the name of a file to write")
        if not file.resolve().parent.is_dir():
            raise ValueError(f"{file}: the folder {file.resolve().parent} does not exist")


def _refine(joints: np.ndarray, weights: str, backend: str, threads: int, **options: Any) -> Refined:
    refiner = Refiner(weights, backend, threads)
    with _progress(len(joints)) as progress:
        refined: Refined = refiner._call(joints, return_details=True, progress=progress, **options)
    return refined


@app.command()
def refine(
    input: Annotated[Path, typer.Argument(metavar="IN", help="Prediction file: one line a frame, 42 numbers.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, in the same format.")],
    format: FormatOption,
    camera: CameraOption = None,
    hand: HandOption = "right",
    order: OrderOption = "nyu14",
    error_mm: ErrorOption = None,
    sequence: SequenceOption = False,
    weights: WeightsOption = "nyu14",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Refine a prediction file. A missing joint is written as nan; it comes back filled in."""
    with _one_sentence():
        intrinsics = _camera(format, camera)
        _check_folder(output)
        given = read_frames(input, format, intrinsics)  # type: ignore[arg-type]
        options = {"hand": hand, "order": _order(order), "error_mm": error_mm, "sequence": sequence}
        refined = _refine(given.joints, weights, backend, threads, **options)
        # A frame that is not refined keeps its line, to the letter.
        good = refined.status == Status.REFINED
        kept = [None if ok else line for ok, line in zip(good, given.lines, strict=True)]
        write_joints(output, refined.joints, format, intrinsics, kept)  # type: ignore[arg-type]
        typer.echo(f"{good.sum()} of {len(good)} frames refined: {output}")


@app.command()
def evaluate(
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION", help="Prediction file.")],
    groundtruth: Annotated[Path, typer.Option(help="Ground truth, in the same format.")],
    format: FormatOption,
    camera: CameraOption = None,
    refine: Annotated[bool, typer.Option("--refine", help="Also refine the prediction and compare.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file, too.")] = None,
    hand: HandOption = "right",
    order: OrderOption = "nyu14",
    error_mm: ErrorOption = None,
    sequence: SequenceOption = False,
    weights: WeightsOption = "nyu14",
    backend: BackendOption = "auto",
    threads: ThreadsOption = 1,
) -> None:
    """Accuracy of a prediction file against the ground truth, before and after refinement."""
    with _one_sentence():
        from jointbert.skeleton import resolve_order

        intrinsics = _camera(format, camera)
        permutation = resolve_order(_order(order))
        _check_folder(json_file)
        before = read_joints(prediction, format, intrinsics)  # type: ignore[arg-type]
        truth = read_joints(groundtruth, format, intrinsics)[:, permutation]  # type: ignore[arg-type]
        if len(before) != len(truth):
            raise ValueError(f"{prediction} has {len(before)} frames, {groundtruth} has {len(truth)}; expected the same number")
        poses = {"before": before[:, permutation]}
        filled = None
        if refine:
            options = {"hand": hand, "order": _order(order), "error_mm": error_mm, "sequence": sequence}
            after = _refine(before, weights, backend, threads, **options).joints[:, permutation]
            # Before and after are compared on the same joints; what was filled in is reported on its own.
            missing = ~np.isfinite(poses["before"]).all(-1)
            poses["after"] = np.where(missing[..., None], np.nan, after)
            filled = joint_errors(after, truth)[missing]
            filled = filled[np.isfinite(filled)]
        ranges = {"all frames": slice(None)}
        nyu = len(truth) in (NYU_TEST_FRAMES, NYU_RANGES[SELECTED].stop)  # all, or the part before the clean frames
        if nyu:
            ranges.update({name: rows for name, rows in NYU_RANGES.items() if rows.start < len(truth)})
        figures = {
            where: {name: accuracy(joints[rows], truth[rows]) for name, joints in poses.items()}
            for where, rows in ranges.items()
        }
        _print_accuracy(figures)
        if filled is not None and len(filled):
            typer.echo(f"{len(filled)} missing joints were filled in, with a mean error of {filled.mean():.2f} mm")
        if nyu:
            typer.echo(
                f"\nThese {len(truth):,} frames look like NYU's test frames. The shipped weights were trained on 0-2439\n"
                "and selected on 2440-4375: only frames 4376-8251 tell what refinement does on data it has not seen."
            )
        if json_file is not None:
            content: dict[str, Any] = {
                where: {name: figure.as_dict() for name, figure in row.items()} for where, row in figures.items()
            }
            if filled is not None:
                content["filled_in"] = {"joints": len(filled), "mean_mm": float(filled.mean()) if len(filled) else None}
            json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _print_accuracy(figures: dict[str, dict[str, Accuracy]]) -> None:
    overall = figures["all frames"]
    columns = list(overall)
    both = len(columns) == 2

    def row(label: str, values: list[float], unit: str = "", gain: bool = True) -> None:
        cells = "".join(f"{value:10.2f}{unit}" for value in values)
        change = f"{100 * relative_gain(*values):+9.2f} %" if both and gain else ""
        typer.echo(f"{label:36s}{cells}{change}")

    typer.echo(f"{'mean joint error, mm':36s}" + "".join(f"{c:>10s}" for c in columns) + ("       gain" if both else ""))
    for where, accuracies in figures.items():
        row(f"{where} ({accuracies[columns[0]].frames})", [accuracies[c].mean_mm for c in columns])
    for joint in overall[columns[0]].by_joint_mm:
        row(f"  {joint}", [overall[c].by_joint_mm[joint] for c in columns])
    typer.echo("\nframes within D, by the mean and by the largest joint error")
    for d in overall[columns[0]].mean_within:
        row(f"  mean error <= {d:g} mm", [100 * overall[c].mean_within[d] for c in columns], " %", gain=False)
    for d in overall[columns[0]].max_within:
        row(f"  max error  <= {d:g} mm", [100 * overall[c].max_within[d] for c in columns], " %", gain=False)
    missing = overall[columns[0]].joints_missing
    if missing:
        typer.echo(f"{missing} joints are missing in the prediction or the ground truth and have no error")


@app.command()
def estimate(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Depth: PNG of 16 bits (mm), NYU's RGB PNG, or .npy; or RGB.")
    ],
    model: Annotated[Path, typer.Option(help="An estimator: .safetensors (torch) or .onnx (ONNX Runtime).")],
    camera: Annotated[str, typer.Option(help="The images' camera: nyu, or fx,fy,cx,cy in pixels.")],
    centre: Annotated[
        str, typer.Option(help="The hand's middle, x,y,z in mm; auto: the middle of what is nearest, in each depth image.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write refined joints to this file: one line an image, 42 numbers.")] = None,
    format: FormatOption = "xyz",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture (needs matplotlib); of several images NAME-1.png, NAME-2.png ...")
    ] = None,
    depth_unit: Annotated[float, typer.Option(help="Millimetres a unit of a 16-bit or .npy depth image.")] = 1.0,
    hand: HandOption = "right",
    threads: ThreadsOption = 1,
    device: Annotated[str, typer.Option(help="cpu, or cuda for a .safetensors file.")] = "cpu",
) -> None:
    """Joints of the hand in each image, by a trained estimator."""
    with _one_sentence():
        from jointbert.estimate import Estimator
        from jointbert.images import centre_of_mass, read_depth, read_rgb

        _check_folder(out, json_file, picture)
        intrinsics = Camera.parse(camera)
        if hand not in HANDS:
            raise ValueError(f"--hand: got {hand!r}; expected {' or '.join(HANDS)}")
        given = None if centre == "auto" else _point(centre)
        estimator = Estimator(model, threads, device)
        if given is None and estimator.image == "rgb":
            raise ValueError("--centre: an RGB image has no depth to find the hand's middle by; give x,y,z")
        found, centres = [], []
        for path in images:
            image = read_depth(path, depth_unit)[None] if estimator.image == "depth" else read_rgb(path)
            try:
                middle = centre_of_mass(image[0], intrinsics, estimator.cube_mm) if given is None else given
                found.append(estimator(image[None], middle[None], intrinsics, hand == "left"))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            centres.append(middle)
        refined = np.concatenate([one.refined for one in found])
        for path, one, middle in zip(images, found, centres, strict=True):
            at = ", ".join(f"{value:.0f}" for value in middle)
            typer.echo(f"{path}: centre ({at}) mm, mean confidence {one.confidence.mean():.2f}")
        if out is not None:
            write_joints(out, refined, format, intrinsics if format == "uvd" else None)  # type: ignore[arg-type]
            typer.echo(f"joints of {len(found)} images: {out}")
        if json_file is not None:
            content = [
                {
                    "image": str(path),
                    "centre_mm": [float(x) for x in middle],
                    **{name: getattr(one, name)[0].tolist() for name in ("joints", "refined", "confidence")},
                    "sigma_mm": one.sigma[0].tolist() if np.isfinite(one.sigma).all() else None,
                }
                for path, one, middle in zip(images, found, centres, strict=True)
            ]
            json_file.write_text(json.dumps({"joints": JOINT_NAMES, "images": content}, indent=1) + "\n", encoding="utf-8")
            typer.echo(f"everything: {json_file}")
        if picture is not None:
            from jointbert.evaluation.figures import save_estimate

            for i, one in enumerate(found):
                name = picture if len(found) == 1 else picture.with_name(f"{picture.stem}-{i + 1}{picture.suffix}")
                crop = one.crops[0, 0] if estimator.image == "depth" else one.crops[0].transpose(1, 2, 0)
                save_estimate(name, crop, one.heatmaps[0], one.uv[0], one.refined[0])
                typer.echo(f"picture: {name}")


def _point(text: str) -> np.ndarray:
    try:
        point = np.array([float(part) for part in text.split(",")])
    except ValueError:
        point = np.empty(0)
    if point.shape != (3,):
        raise ValueError(f"--centre: got {text!r}; expected auto or x,y,z in millimetres")
    return point


@app.command()
def demo(
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture of one frame before and after (needs matplotlib).")
    ] = None,
    frame: Annotated[int | None, typer.Option(help="Which frame the picture shows; the one of median gain without it.")] = None,
    backend: BackendOption = "auto",
) -> None:
    """Refine the sample that ships: a generated hand with errors such as published methods make, no recording."""
    with _one_sentence():
        from jointbert.demo import load_demo

        _check_folder(picture)
        sample = load_demo()
        if frame is not None and not 0 <= frame < len(sample.predictions):
            raise ValueError(f"--frame: got {frame}; expected 0 to {len(sample.predictions) - 1}")
        refiner = Refiner(backend=backend)
        refined = refiner(sample.predictions)
        confident = refiner(sample.predictions, confidence=sample.confidence)
        hidden = sample.predictions.copy()
        hidden[:, 4:6] = np.nan
        filled = refiner(hidden)

        def errors(joints: np.ndarray) -> np.ndarray:
            return np.asarray(np.linalg.norm(joints - sample.groundtruth, axis=-1))

        before, after = errors(sample.predictions), errors(refined)
        typer.echo(f"{len(before)} frames of a generated hand, errors modelled on published methods' (mean joint error, mm)")
        for label, value in (
            ("predicted", before.mean()),
            ("refined", after.mean()),
            ("refined, confidence given", errors(confident).mean()),
        ):
            gain = "" if label == "predicted" else f"{100 * relative_gain(before.mean(), value):+8.1f} %"
            typer.echo(f"  {label:42s}{value:8.2f}{gain}")
        typer.echo(f"  {'middle finger, hidden (it moves at random)':42s}{errors(filled)[:, 4:6].mean():8.2f}")
        if picture is not None:
            from jointbert.evaluation.figures import before_after

            gains = before.mean(1) - after.mean(1)
            shown = int(np.argsort(gains)[len(gains) // 2]) if frame is None else frame
            before_after(picture, sample.groundtruth[shown], sample.predictions[shown], refined[shown])
            typer.echo(f"picture of frame {shown}: {picture}")


@app.command()
def bench(
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,16,256",
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option(help="How long to measure each batch size.", min=0)] = 3.0,
    weights: WeightsOption = "nyu14",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Time refine() here by every backend, warmed up and interleaved."""
    with _one_sentence():
        from jointbert.bench import bench as measure

        _check_folder(json_file)
        try:
            sizes = [int(size) for size in batch.split(",")]
        except ValueError:
            raise ValueError(f"batch: got {batch!r}; expected sizes with commas, as in 1,16,256") from None
        report = measure(weights, sizes, threads, seconds)
        typer.echo(", ".join(f"{key} {value}" for key, value in report.where.items()))
        first = report.rows[0].call if report.rows else ""
        typer.echo(f"{'batch':>6s} {'backend':26s}{'p50 us':>11s}{'p99 us':>11s}{f'p50 over {first}':>18s}")
        base = {row.batch: row.p50_us for row in report.rows if row.call == first}
        for row in report.rows:
            ratio = row.p50_us / base[row.batch]
            typer.echo(f"{row.batch:6d} {row.call:26s}{row.p50_us:11.1f}{row.p99_us:11.1f}{ratio:18.2f}")
        for name, why in report.missing.items():
            typer.echo(f"not here: {name}: {why}")
        if json_file is not None:
            content = {**report.where, "rows": [row._asdict() for row in report.rows], "missing": report.missing}
            json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@app.command()
def export(
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The ONNX file to write.")],
    weights: WeightsOption = "nyu14",
    estimator: Annotated[
        Path | None, typer.Option(help="Write this estimator (.safetensors) instead: images in, joints out.")
    ] = None,
) -> None:
    """Write the refiner as ONNX (features in, correction and log sigma out), or an estimator; needs the extra [export]."""
    with _one_sentence():
        try:
            from jointbert.export.onnx import export_estimator, export_refiner
        except ImportError as error:
            raise ImportError(f'export needs torch and onnx ({error}); pip install "jointbert[export]"') from None
        if estimator is None:
            export_refiner(output, weights)
        else:
            export_estimator(output, estimator)
        typer.echo(f"wrote {output}")


@app.command()
def info(weights: WeightsOption = "nyu14") -> None:
    """Version, backends, and what the weights are and have seen."""
    with _one_sentence():
        from jointbert.backends import BACKENDS, load_backend
        from jointbert.weights import load_sequence_weights, load_weights

        typer.echo(f"jointbert {__version__}")
        loaded = load_weights(weights)
        for name in BACKENDS:
            try:
                backend = load_backend(name, loaded, 1)
                detail = getattr(backend, "isa", "")
                state = f"available{f', {detail}' if detail else ''}"
            except (ImportError, RuntimeError, ValueError) as error:
                state = f"not available: {error}"
            typer.echo(f"backend {name}: {state}")
        parameters = sum(tensor.size for tensor in loaded.tensors.values())
        typer.echo(f"weights {weights}" + (f": {parameters / 1e6:.2f}M parameters" if parameters else " (ONNX)"))
        for key, value in sorted(loaded.metadata.items()):
            typer.echo(f"  {key}: {value}")
        try:
            second = load_sequence_weights(loaded)
        except ValueError as error:
            typer.echo(f"second stage: none ({error})")
            return
        parameters = sum(tensor.size for tensor in second.tensors.values())
        typer.echo(f"second stage, for sequences and calibrated persons: {parameters / 1e6:.2f}M parameters")
        for key, value in sorted(second.metadata.items()):
            typer.echo(f"  {key}: {value}")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"jointbert {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the command ``jointbert``."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)  # a wrong option is one sentence, too, without the usage above it
    except Exception as error:
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        message = " ".join(describe().split())
        if message:
            typer.echo(f"Error: {message}", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
