#!/usr/bin/env bash
# Builds the native module, and the GPU's kernels for the host, with AddressSanitizer and UndefinedBehaviorSanitizer and runs their
# tests against those builds.
# Usage: scripts/sanitize.sh [python]; the Python needs the package's test dependencies, pybind11, and cmake on the path.
set -euo pipefail

python=${1:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
python=$("$python" -c 'import sys; print(sys.executable)')
PATH="$(dirname "$python"):$PATH"
cxx=${CXX:-g++}

# 1. A build of its own, outside the repository: the usual build is neither used nor replaced. -O1 -g1: a report names lines.
cmake -S "$root" -B "$work/build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
  -DCMAKE_CXX_COMPILER="$cxx" -DJOINTBERT_SANITIZE=ON -DPython_EXECUTABLE="$python" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$work/cmake.log" || { cat "$work/cmake.log"; exit 1; }
cmake --build "$work/build" -j "${JOBS:-2}"

# 2. A copy of the package with no module but the sanitized one.
mkdir "$work/package"
cp -r "$root/jointbert" "$work/package/"
rm -f "$work/package/jointbert/"_core*.so
cp "$work/build/"_core*.so "$work/package/jointbert/"
cp -r "$root/tests" "$root/csrc" "$root/pyproject.toml" "$work/package/"

# 3. Tests that passed against another build would prove nothing, so a plugin looks at what was really imported, at the end, too.
cat >"$work/package/imported_from.py" <<'PLUGIN'
import os
import sys

# An editable install of the package answers imports before any path does: here it must not.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]

import jointbert._core


def where() -> str:
    return os.path.realpath(jointbert._core.__file__)


def pytest_report_header() -> str:
    return f"sanitized module: {where()}"


def pytest_sessionstart() -> None:
    assert where().startswith(os.path.realpath(os.environ["SANITIZED_BUILD"]) + os.sep), where()


def pytest_sessionfinish() -> None:
    pytest_sessionstart()
PLUGIN

# 4. The interpreter is not built with the sanitizers, so their runtime has to be there before it starts; and libstdc++ with it,
#    because the runtime looks up the function behind `throw` when it is loaded, which is before the module brings libstdc++.
#    LSan is off: an interpreter keeps much memory until it ends, and says so.
preload="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)"

# 5. A finding ends the process at once with an exit status of its own: neither a test's `raises` nor pytest can swallow it. The
#    report goes to the process's own stderr, which pytest keeps to itself unless it captures Python's alone.
cd "$work/package"
sanitized() {
  SANITIZED_BUILD="$work/package" PYTHONPATH="$work/package" OMP_NUM_THREADS=1 LD_PRELOAD="$preload" \
    ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1:exitcode=99 \
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:exitcode=99 \
    "$python" -m pytest -p imported_from -p no:cacheprovider --capture=sys "$@"
}
sanitized -m sanitize tests/runtimes tests/inputs tests/weights tests/test_refine.py tests/test_refine_mistakes.py \
  tests/test_sequence.py >"$work/native.log" 2>&1 & # beside the next: both are one thread's work
native=$!

# 6. The GPU's kernels, compiled for the host with the sanitizers, too; skipped where there are no CUDA headers. The marker
#    `sanitize` selects small cases, since the emulator is slow here: every kernel and every type of value.
export JOINTBERT_HOST_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
sanitized tests/cuda -m sanitize
status=0
wait "$native" || status=$?
cat "$work/native.log"
if [ "$status" != 0 ]; then exit "$status"; fi
echo "sanitize: no findings"
