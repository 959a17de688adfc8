#!/usr/bin/env python3
"""Prints a SHA-256 of what refine(), sequences, streams and calibrated refiners give on the published predictions, by method.

Two builds that print the same lines give the same results, bit for bit: run it with each build's Python and compare the files.

    python scripts/digest_results.py --data ../shared/data/nyu > digests.txt

The folder holds ``predictions/*.txt``, one line per frame, u v d of 14 joints (NYU's Kinect). Every 97th joint is missing and
every second method gets a confidence, so that both are covered. Results depend on the instruction set, which is the best one of
the processor: compare on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import jointbert
from jointbert.camera import NYU


def digest(arrays: Iterable[np.ndarray]) -> str:
    """The SHA-256 of the arrays' shapes, dtypes and bytes; 16 digits of it."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def digests(uvd: np.ndarray, with_confidence: bool) -> dict[str, str]:
    """Digests of one method's results by the way they were made. ``uvd``: ``(frames, 14, 3)``."""
    joints = NYU.uvd_to_xyz(uvd)
    joints.reshape(-1, 3)[::97] = np.nan
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=joints.shape[:2]).astype(np.float32) if with_confidence else None
    options = {"confidence": confidence, "return_details": True}
    refiner = jointbert.Refiner()
    found = {
        "single": digest(refiner(joints, **options)),
        "single float32": digest(refiner(joints.astype(np.float32), **options)),
        "sequence": digest(refiner(joints, sequence=True, **options)),
    }
    stream = refiner.stream(look_ahead=5, return_details=True)
    online = [stream(frame, confidence=None if confidence is None else c) for frame, c in _frames(joints, confidence)]
    online = [one for one in online if one is not None] + stream.flush()
    found["stream"] = digest(np.stack(column) for column in zip(*online, strict=True))
    refiner.calibrate(joints[:200])
    found["calibrated"] = digest(refiner(joints, **options))
    return found


def _frames(joints: np.ndarray, confidence: np.ndarray | None) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
    return zip(joints, [None] * len(joints) if confidence is None else confidence, strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the published predictions")
    files = sorted((parser.parse_args().data / "predictions").glob("*.txt"))
    warnings.simplefilter("ignore")
    for i, file in enumerate(files):
        uvd = np.loadtxt(file).reshape(-1, 14, 3)
        for way, value in digests(uvd, with_confidence=i % 2 == 1).items():
            print(f"{file.stem:32s} {way:16s} {value}")


if __name__ == "__main__":
    main()
