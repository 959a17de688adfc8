"""Registers, shared memory, spills, occupancy and barriers of the GPU kernels, as a table.

    python scripts/kernel_resources.py [--arch 90a]

Compiles csrc/cuda with nvcc, and its sizes with g++; no GPU is needed. The table in docs/gpu.md is this one's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
EMULATION = ROOT / "tests" / "emulation"
# Shared memory of a processor, and of a block at most, in KiB; threads of a processor.
PROCESSORS = {"75": (64, 64, 1024), "80": (164, 163, 2048), "86": (100, 99, 1536), "89": (100, 99, 1536)}
PROCESSORS |= {"90a": (228, 227, 2048), "100": (228, 227, 2048), "120": (100, 99, 1536)}
LAYERS = 12
# Types in dynamic shared memory, by file.
SIZES = {
    "refiner/refiner.cu": {
        "tiles1": "TileMemory<1>",
        "tiles2": "TileMemory<2>",
        "split3": "SplitMemory<3>",
        "split4": "SplitMemory<4>",
        "exchange": "PoseExchange",
    },
    "heatmaps/soft_argmax_depth.cu": {"depth": "Shared"},
}
# The CUDA runtime's functions that the files call.
RUNTIME = """
extern "C" {
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaErrorNotSupported; }
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaErrorNotSupported; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t*, const cudaMemPoolProps*) { return cudaErrorNotSupported; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaErrorNotSupported; }
}
"""


class Kernel(NamedTuple):
    """What the compiler reports of one."""

    name: str
    registers: int
    static_bytes: int
    stored: int  # spilled, in bytes, and read again
    loaded: int


def main(arch: Annotated[str, typer.Option(help=f"One of {', '.join(PROCESSORS)}.")] = "90a") -> None:
    """Print the table."""
    nvcc, compiler = shutil.which("nvcc"), shutil.which("g++")
    if arch not in PROCESSORS or nvcc is None or compiler is None:
        typer.echo(f"Error: expected nvcc, g++ and an architecture of {', '.join(PROCESSORS)}", err=True)
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory() as folder:
        sizes = measure(compiler, Path(nvcc), Path(folder))
        said = "".join(
            compile_kernels(nvcc, CUDA / source, arch, Path(folder))
            for source in ("refiner/refiner.cu", "heatmaps/soft_argmax.cu", "heatmaps/soft_argmax_depth.cu")
        )
    print("\n".join(table(kernels_in(said, arch), sizes, arch)))


def table(kernels: list[Kernel], sizes: dict[str, int], arch: str) -> list[str]:
    """The lines of the table."""
    shared_kib, block_kib, threads = PROCESSORS[arch]
    lines = ["| kernel | threads | registers | shared memory | spilled, read again | blocks a processor | barriers |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for kernel in kernels:
        block, dynamic = shape(kernel.name, sizes, block_kib << 10)
        if dynamic is None or kernel.registers <= 8:  # left out on this architecture
            continue
        shared = kernel.static_bytes + dynamic
        of_registers = 65536 // (-(-kernel.registers // 8) * 8 * block)
        blocks = min(of_registers, (shared_kib << 10) // (shared + 1024), threads // block)
        count, of = barriers(kernel.name)
        spilled = f"{kernel.stored}, {kernel.loaded}" if kernel.stored or kernel.loaded else "0"
        barrier = f"{count} of {of}"
        lines.append(f"| {kernel.name} | {block} | {kernel.registers} | {shared:,} | {spilled} | {blocks} | {barrier} |")
    return lines


def measure(compiler: str, nvcc: Path, folder: Path) -> dict[str, int]:
    """Sizes of the types in dynamic shared memory."""
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"], capture_output=True, text=True, check=False)
    top = next(line.removeprefix("#$ TOP=").strip() for line in dry.stderr.splitlines() if line.startswith("#$ TOP="))
    where = ["-isystem", f"{top}/include", "-I", str(CUDA), "-I", str(EMULATION)]
    found = {}
    for file, types in SIZES.items():
        source, program = folder / "sizes.cpp", folder / "sizes"
        lines = "".join(f'std::printf("{name} %zu\\n", sizeof(jointbert::cuda::{kind}));\n' for name, kind in types.items())
        source.write_text(f'#include "{file}"\nint main() {{\n{lines}}}\n{RUNTIME}')
        subprocess.run([compiler, "-std=c++17", "-w", *where, str(source), "-o", str(program)], check=True)
        printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        found |= {name: int(size) for name, size in (line.split() for line in printed.splitlines())}
    return found


def compile_kernels(nvcc: str, source: Path, arch: str, folder: Path) -> str:
    """The compilers' output for a file."""
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas=-v", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(folder / "o")], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout + done.stderr


def kernels_in(said: str, arch: str) -> list[Kernel]:
    """The kernels of one architecture in the compilers' output: of those that differ by type alone float16's, and
    float32's where its code differs."""
    found = []
    for part in said.split("Compiling entry function")[1:]:
        entry, registers = re.search(r"'(\S+)' for 'sm_(\w+)'", part), re.search(r"Used (\d+) registers", part)
        spilled, static = re.search(r"(\d+) bytes spill stores, (\d+)", part), re.search(r"(\d+) bytes smem", part)
        assert entry is not None
        assert registers is not None
        assert spilled is not None
        name = entry[1]
        single = "kernelIf" in name
        if entry[2] != arch or "__nv_bfloat16" in name or (single and "depth_kernel" not in name):
            continue
        kind = re.search(r"\d([a-z]+)_kernel", name)
        assert kind is not None
        numbers = re.findall(r"L[ib](\d+)E", name)
        label = kind[1] + (f"<{', '.join(numbers)}>" if numbers else "") + (" float32" if single else "")
        found.append(Kernel(label, int(registers[1]), int(static[1]) if static else 0, int(spilled[1]), int(spilled[2])))
    return sorted(found)


def shape(name: str, sizes: dict[str, int], block_bytes: int) -> tuple[int, int | None]:
    """Threads, and bytes of dynamic shared memory (None: more than a block can have)."""
    if name.startswith("tiles"):
        memory = sizes[f"tiles{name[6]}"]
        return 256, memory if memory <= block_bytes else None
    if name.startswith(("cluster", "grid")):
        memory = sizes[f"split{name[name.index('<') + 1]}"]
        exchange = sizes["exchange"] if name.startswith("cluster") else 0  # one pose's
        return 256, memory + exchange if memory <= block_bytes else None
    if name.startswith("depth"):
        return 256, sizes["depth"]
    threads = {"maps<256": 256, "maps<512": 512, "pixels": 448, "backward": 256}
    return next(t for kind, t in threads.items() if name.startswith(kind)), 0


def barriers(name: str, layers: int = LAYERS) -> tuple[int, str]:
    """How many barriers a kernel has, and of which threads; tests count them (tests/cuda)."""
    halves = 2 * layers
    if name.startswith("tiles"):
        return 8 * halves + halves, "a block"
    if name.startswith(("cluster", "grid")):
        return 2 * halves + 1, "a cluster" if name.startswith("cluster") else "8 blocks"
    return 3 if name.startswith("depth") else 2, "a block"


if __name__ == "__main__":
    typer.run(main)
