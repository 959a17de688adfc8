#!/usr/bin/env bash
# Builds sdist and manylinux wheel into wheelhouse/, then installs the wheel in a fresh environment that sees no compiler and
# runs the demo there. Needs the extra [dev].  Usage: scripts/build_wheel.sh [python]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p wheelhouse
# The wheel is built from the sdist: nothing that it needs is missing there. What it holds must not depend on this machine's GPU:
# kernels for all of them where there is nvcc, which takes minutes, and none where there is not.
archs=${JOINTBERT_CUDA_ARCHS:-$(command -v nvcc >/dev/null && echo all || echo none)}
"$python" -m build --outdir "$work/dist" -C "cmake.define.JOINTBERT_CUDA_ARCHS=$archs" .
cp "$work"/dist/*.tar.gz wheelhouse/
# auditwheel writes the oldest glibc that the module runs with into the wheel's name.
"$python" -m auditwheel repair --wheel-dir wheelhouse "$work"/dist/*.whl
wheel=$(ls -t wheelhouse/*.whl | head -1)

"$python" -m venv "$work/fresh"
cd "$work" # not in the checkout: its sources would hide the installed package
"$work/fresh/bin/pip" install --quiet "$OLDPWD/$wheel"
CC=/bin/false CXX=/bin/false PATH="$work/fresh/bin" "$work/fresh/bin/jointbert" demo
echo "built and tried: $wheel (GPU kernels: $archs)"
