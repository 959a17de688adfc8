#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under 9 minutes: build, GPU tests, benchmarks, compute-sanitizer. A part that
# fails does not stop the next; the exit status is the number of parts that failed. What was measured goes to benchmarks/results
# and, with the log, to $OUT (default: gpu_check).
#
#   scripts/gpu_check.sh
#
# Needs nvcc, compute-sanitizer, cmake and ninja or make; in the Python found first (or $PYTHON) pybind11, torch, numpy, safetensors,
# typer, pytest, hypothesis; torchvision for the estimator.
set -uo pipefail
cd "$(dirname "$0")/.."

out=$(mkdir -p "${OUT:-gpu_check}" && cd "${OUT:-gpu_check}" && pwd)
python=${PYTHON:-python3}
failed=0
: >"$out/log.txt"

all=530 # seconds

part() { # part NAME SECONDS COMMAND...: at most so long, and no longer than all may take together
    local name=$1 seconds=$2 begin=$SECONDS
    shift 2
    if ((all - SECONDS < seconds)); then seconds=$((all > SECONDS ? all - SECONDS : 1)); fi
    echo "=== $name: $*" >>"$out/log.txt"
    if timeout -k 5 "$seconds" "$@" >>"$out/log.txt" 2>&1; then
        echo "ok      $name ($((SECONDS - begin)) s)"
    else
        echo "FAILED  $name ($((SECONDS - begin)) s): $(tail -n 1 "$out/log.txt")"
        failed=$((failed + 1))
    fi
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv | tee -a "$out/log.txt"
# The sources of the checkout come before an installed package: the modules are built into it, as an editable install does.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
export CUDACXX=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
part configure 60 cmake -S . -B "$build" -G "$generator" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/jointbert"
part build 150 cmake --build "$build" --parallel
export PYTHONPATH=$PWD JOINTBERT_NEEDS_GPU=1 # a GPU test that would be skipped fails
part module 30 "$python" -c "from jointbert import _cuda; n, why = _cuda.devices(); assert n, why; print(_cuda.ARCHITECTURES)"
part tests 90 "$python" -m pytest -p no:cacheprovider -q -W default tests/cuda/test_soft_argmax_gpu.py tests/cuda/test_refiner_gpu.py \
    tests/models --ignore tests/models/test_estimator_gpu.py
part estimator_tests 60 "$python" -m pytest -p no:cacheprovider -q -W default tests/models/test_estimator_gpu.py
part refiner 150 "$python" benchmarks/refiner_gpu.py
part soft_argmax 100 "$python" benchmarks/soft_argmax_gpu.py
part estimator 90 "$python" benchmarks/estimator_gpu.py
# The allocator of torch would hide an access beyond a tensor's end.
for tool in memcheck racecheck synccheck; do
    part "$tool" 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest \
        -p no:cacheprovider -q -W default tests/cuda/test_soft_argmax_gpu.py tests/cuda/test_refiner_gpu.py \
        -k "5-7-5 or 3-128-128 or 17-7-5 or gradient or twin and 7 or said"
done
cp "$(ls -t benchmarks/results/nvidia*.json | head -n 1)" "$out"/ 2>/dev/null
echo "$failed parts failed"
exit "$failed"
