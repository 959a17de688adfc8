"""Is one build of jointbert as fast as another? Latency of refine() by two installed builds, interleaved on one core.

    python -m benchmarks.build_latency OLD/bin/python NEW/bin/python

Each argument is the Python of an environment in which a build is installed. Each build runs in a process of its own, pinned to
the same core; the processes take turns of some milliseconds, so that both see the same machine. Printed are p50 and p99 of one
call in microseconds, from NumPy millimetres to NumPy millimetres, and the second build's p50 over the first's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

import numpy as np

_CHILD = """
import os, sys, time
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
import jointbert
poses = jointbert.load_demo().predictions
refiner = jointbert.Refiner()
print("ready", jointbert.__file__, flush=True)
for line in sys.stdin:
    batch, calls = map(int, line.split())
    given = np.resize(poses, (batch, 14, 3))
    refiner(given)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        refiner(given)
        times.append(time.perf_counter() - start)
    print(*times, flush=True)
"""


class Build:
    """A build in a process of its own."""

    def __init__(self, python: str, folder: str) -> None:
        self.process = subprocess.Popen(
            [python, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )
        self.where = self._answer().split(maxsplit=1)[1]

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("a build could not be run: see the message above")
        return line

    def time(self, batch: int, calls: int) -> list[float]:
        """Seconds of each of some calls."""
        assert self.process.stdin is not None
        print(batch, calls, file=self.process.stdin, flush=True)
        return [float(x) for x in self._answer().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs=2, help="the Python of an environment with a build")
    parser.add_argument("--batch", default="1,16,256", help="batch sizes, with commas")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each batch size and build")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:  # no checkout hides an installed build there
        builds = [Build(python, folder) for python in arguments.python]
        for build, python in zip(builds, arguments.python, strict=True):
            print(f"{python}: {build.where}")
        print(f"{'batch':>6s}{'first p50':>12s}{'p99':>10s}{'second p50':>12s}{'p99':>10s}{'second/first':>14s}")
        for batch in (int(size) for size in arguments.batch.split(",")):
            once = builds[0].time(batch, 5)[-1]
            calls = max(1, round(0.02 / once))
            rounds = max(5, round(arguments.seconds / (calls * once)))
            times: list[list[float]] = [[], []]
            for turn in range(rounds):
                for i in (0, 1) if turn % 2 else (1, 0):
                    times[i] += builds[i].time(batch, calls)
            (a50, a99), (b50, b99) = (1e6 * np.percentile(values, (50, 99)) for values in times)
            print(f"{batch:6d}{a50:12.1f}{a99:10.1f}{b50:12.1f}{b99:10.1f}{b50 / a50:14.3f}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
