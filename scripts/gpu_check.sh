#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under 9 minutes: build, GPU tests, compute-sanitizer, benchmarks. A part that
# fails does not stop the next; the exit status is the number of parts that failed. Results and logs lie in $OUT (default: gpu_check).
#
#   scripts/gpu_check.sh
#
# Needs nvcc, and scikit-build-core, pybind11, torch, numpy, safetensors, typer, pytest in the Python that is found first.
set -uo pipefail
cd "$(dirname "$0")/.."

out=$(mkdir -p "${OUT:-gpu_check}" && cd "${OUT:-gpu_check}" && pwd)
python=${PYTHON:-python3}
failed=0

part() { # part NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    local begin=$SECONDS
    if timeout "$seconds" "$@" >"$out/$name.log" 2>&1; then
        echo "ok      $name ($((SECONDS - begin)) s)"
    else
        echo "FAILED  $name ($((SECONDS - begin)) s): $(tail -n 1 "$out/$name.log")"
        failed=$((failed + 1))
    fi
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv | tee "$out/device.txt"
# The sources of the checkout come before an installed package: the modules are built into it, as an editable install does.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
part configure 60 cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/jointbert"
part build 180 cmake --build "$build" --parallel
export PYTHONPATH=$PWD
part tests 120 "$python" -m pytest -p no:cacheprovider -q tests/cuda/test_soft_argmax_gpu.py tests/models
for tool in memcheck racecheck synccheck; do
    part "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -p no:cacheprovider -q \
        tests/cuda/test_soft_argmax_gpu.py -k "soft-10.0-4 and 5-7-5 or soft-10.0-4 and 1-64-64"
done
part soft_argmax 150 "$python" benchmarks/soft_argmax_gpu.py
cp benchmarks/results/*.json "$out"/ 2>/dev/null
echo "$failed parts failed"
exit "$failed"
