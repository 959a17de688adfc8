"""``jointbert estimate``: computes refined joints from images with a trained estimator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jointbert.camera import Camera
from jointbert.cli.common import FormatOption, HandOption, ThreadsOption, check_folder, one_sentence, refuse_unused
from jointbert.inputs.arguments import HANDS
from jointbert.inputs.textformat import write_joints
from jointbert.skeletons import NYU14


def command(
    context: typer.Context,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Depth: PNG of 16 bits (mm), NYU's RGB PNG, or .npy; or RGB.")
    ],
    model: Annotated[Path, typer.Option(help="An estimator: .safetensors (torch) or .onnx (ONNX Runtime).")],
    camera: Annotated[str, typer.Option(help="The images' camera: nyu, or fx,fy,cx,cy in pixels.")],
    centre: Annotated[
        str, typer.Option(help="The hand's centre, x,y,z in mm; auto: in each depth image, the centre of the nearest object.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write refined joints to this file: one line per image, 42 numbers.")] = None,
    format: FormatOption = "xyz",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture (needs matplotlib); of several images NAME-1.png, NAME-2.png ...")
    ] = None,
    depth_unit: Annotated[float, typer.Option(help="Millimetres per unit of a 16-bit or .npy depth image.")] = 1.0,
    hand: HandOption = "right",
    threads: ThreadsOption = 1,
    device: Annotated[str, typer.Option(help="cpu, or cuda for a .safetensors file.")] = "cpu",
) -> None:
    """Compute the joints of the hand in each image with a trained estimator."""
    with one_sentence():
        from jointbert.estimator import Estimator
        from jointbert.inputs.images import centre_of_mass, read_depth, read_rgb

        check_folder(out, json_file, picture)
        if out is None:
            refuse_unused(context, ("format",), "without --out no joints are written, and it has no effect")
        intrinsics = Camera.parse(camera)
        if hand not in HANDS:
            raise ValueError(f"--hand: got {hand!r}; expected {' or '.join(HANDS)}")
        given = None if centre == "auto" else _parse_point(centre)
        estimator = Estimator(model, threads, device)
        if given is None and estimator.image == "rgb":
            raise ValueError("--centre: an RGB image has no depth by which to find the hand's centre; give x,y,z")
        if estimator.image == "rgb":
            refuse_unused(context, ("depth_unit",), "the estimator takes RGB images, and it has no effect")
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
            json_file.write_text(json.dumps({"joints": NYU14.names, "images": content}, indent=1) + "\n", encoding="utf-8")
            typer.echo(f"everything: {json_file}")
        if picture is not None:
            from jointbert.evaluation.figures import save_estimate

            for i, one in enumerate(found):
                name = picture if len(found) == 1 else picture.with_name(f"{picture.stem}-{i + 1}{picture.suffix}")
                crop = one.crops[0, 0] if estimator.image == "depth" else one.crops[0].transpose(1, 2, 0)
                save_estimate(name, crop, one.heatmaps[0], one.uv[0], one.refined[0])
                typer.echo(f"picture: {name}")


def _parse_point(text: str) -> np.ndarray:
    try:
        point = np.array([float(part) for part in text.split(",")])
    except ValueError:
        point = np.empty(0)
    if point.shape != (3,):
        raise ValueError(f"--centre: got {text!r}; expected auto or x,y,z in millimetres")
    return point
