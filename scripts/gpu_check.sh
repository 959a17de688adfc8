#!/usr/bin/env bash
# Runs every check that needs a GPU in under 9 minutes: build, GPU tests, benchmarks, compute-sanitizer. Parts that fail or hang do not
# stop the others. A part for which no time is left counts as failed. The exit status is the number of failed parts. Measurements are
# written to benchmarks/results and copied, with the log, to $OUT (default: gpu_check).
#
#   scripts/gpu_check.sh [PART...]     without names: all parts
#
# Needs nvcc, compute-sanitizer, cmake and ninja or make, and a Python (the first on the PATH, or $PYTHON) with pybind11, torch,
# torchvision, numpy, safetensors, typer, pytest and hypothesis.
set -uo pipefail
cd "$(dirname "$0")/.."

out=$(mkdir -p "${OUT:-gpu_check}" && cd "${OUT:-gpu_check}" && pwd)
python=${PYTHON:-python3}
wanted=" $* "
failed=0
: >"$out/log.txt"

all=${GPU_CHECK_SECONDS:-525} # time limit of all parts together
last_words=10                 # seconds between SIGINT and SIGKILL, in which pytest prints its summary

part() { # part NAME SECONDS COMMAND...: runs the command within its own and the common time limit
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
# The modules are built into the checkout, which takes precedence over an installed package.
build=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$build"' EXIT
generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
export CUDACXX=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
"$python" -c "import torch, torchvision; torch.zeros(1).cuda()" >/dev/null 2>&1 & # loads the libraries that the tests will import into the page cache
part configure 60 cmake -S . -B "$build" -G "$generator" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/jointbert"
part build 150 cmake --build "$build" --parallel
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 JOINTBERT_NEEDS_GPU=1 # GPU tests fail instead of being skipped
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
part refiner 120 "$python" -m benchmarks.refiner_gpu
part soft_argmax 80 "$python" -m benchmarks.soft_argmax_gpu
part estimator 90 "$python" -m benchmarks.estimator_gpu
# Only this library's kernels are checked, each on few poses. torch's caching allocator would hide accesses beyond a tensor's end.
only=()
if compute-sanitizer --help 2>/dev/null | grep -q -e --kernel-name; then only=(--kernel-name kns=jointbert); fi
for tool in "memcheck --report-api-errors no" racecheck synccheck; do
    # shellcheck disable=SC2086
    part "${tool%% *}" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 JOINTBERT_MEASURED=2 compute-sanitizer --tool $tool "${only[@]}" \
        --error-exitcode 9 "${tests[@]}" tests/cuda/test_soft_argmax_gpu.py tests/cuda/test_refiner_gpu.py \
        -m sanitize
done
echo "$failed parts failed"
exit "$failed"
