#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under 9 minutes: build, GPU tests, benchmarks, compute-sanitizer. A part that
# fails does not stop the next, nor does one that hangs; a part for which no time is left fails. The exit status is the number of
# parts that failed. What was measured goes to benchmarks/results and, with the log, to $OUT (default: gpu_check).
#
#   scripts/gpu_check.sh [PART...]     all of them, or those that are named
#
# Needs nvcc, compute-sanitizer, cmake and ninja or make; in the Python found first (or $PYTHON) pybind11, torch, torchvision,
# numpy, safetensors, typer, pytest, hypothesis.
set -uo pipefail
cd "$(dirname "$0")/.."

out=$(mkdir -p "${OUT:-gpu_check}" && cd "${OUT:-gpu_check}" && pwd)
python=${PYTHON:-python3}
wanted=" $* "
failed=0
: >"$out/log.txt"

all=${GPU_CHECK_SECONDS:-525} # of all parts together
last_words=10                 # seconds between an interrupt and the end: pytest still says what it found

part() { # part NAME SECONDS COMMAND...: at most so long, and no longer than all may take together
    local name=$1 seconds=$2 begin=$SECONDS
    shift 2
    if [[ $wanted != "  " && $wanted != *" $name "* ]]; then return; fi
    local left=$((all - SECONDS - last_words))
    if ((left < 1)); then
        echo "FAILED  $name: no time is left"
        failed=$((failed + 1))
        return
    fi
    if ((left < seconds)); then seconds=$left; fi
    echo "=== $name: $*" >>"$out/log.txt"
    if timeout -s INT -k $last_words "$seconds" "$@" >>"$out/log.txt" 2>&1; then
        echo "ok      $name ($((SECONDS - begin)) s)"
    else
        echo "FAILED  $name ($((SECONDS - begin)) s): $(tail -n 1 "$out/log.txt")"
        failed=$((failed + 1))
    fi
    grep -l '"compute_capability"' benchmarks/results/*.json 2>/dev/null | xargs -r cp -t "$out"
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv | tee -a "$out/log.txt"
# The sources of the checkout come before an installed package: the modules are built into it, as an editable install does.
build=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$build"' EXIT
generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
export CUDACXX=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
"$python" -c "import torch, torchvision; torch.zeros(1).cuda()" >/dev/null 2>&1 & # reads what the tests will import
part configure 60 cmake -S . -B "$build" -G "$generator" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/jointbert"
part build 150 cmake --build "$build" --parallel
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 JOINTBERT_NEEDS_GPU=1 # a GPU test that would be skipped fails
part module 60 "$python" -c "
from jointbert import _cuda
from jointbert.runtimes.cuda import CudaBackend
from jointbert.weights import load_weights
count, why = _cuda.devices()
assert count, why
refiner = CudaBackend(load_weights()).refiner(0)
print(_cuda.ARCHITECTURES, 'clusters', refiner.clusters, *refiner.measured, sep='\n')"
tests=("$python" -m pytest -p no:cacheprovider -v --tb=short -W default)
part tests 120 "${tests[@]}" tests/cuda/test_soft_argmax_gpu.py tests/cuda/test_refiner_gpu.py tests/models \
    --ignore tests/models/test_estimator_gpu.py
part estimator_tests 60 "${tests[@]}" tests/models/test_estimator_gpu.py
part refiner 120 "$python" benchmarks/refiner_gpu.py
part soft_argmax 80 "$python" benchmarks/soft_argmax_gpu.py
part estimator 90 "$python" benchmarks/estimator_gpu.py
# Our kernels alone, each on few poses. The allocator of torch would hide an access beyond a tensor's end.
only=()
if compute-sanitizer --help 2>/dev/null | grep -q -e --kernel-name; then only=(--kernel-name kns=jointbert); fi
for tool in "memcheck --report-api-errors no" racecheck synccheck; do
    # shellcheck disable=SC2086
    part "${tool%% *}" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 JOINTBERT_MEASURED=2 compute-sanitizer --tool $tool "${only[@]}" \
        --error-exitcode 9 "${tests[@]}" tests/cuda/test_soft_argmax_gpu.py tests/cuda/test_refiner_gpu.py \
        -k "5-7-5 or 17-7-5 or 3-128-128-False or None-3-128-128 or any_layout or f16-7 or said or two_poses or session"
done
echo "$failed parts failed"
exit "$failed"
