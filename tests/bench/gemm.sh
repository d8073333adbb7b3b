#!/usr/bin/env bash
# The matrix product beside the gemm crate, faer, OpenBLAS, BLIS and torch (oneDNN, MKL), in turn, in GFLOP/s.
#
#   LLAVA_PYTHON=PYTHON tests/bench/gemm.sh [THREADS] [ROUNDS]
#
# OpenBLAS and BLIS are measured where they are installed (Debian: libopenblas0-pthread, libblis4-pthread).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/gemm"
threads="${1:-2}"
export RAYON_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads" BLIS_NUM_THREADS="$threads" OMP_NUM_THREADS="$threads"
exec cargo run --release -q -- "$threads" "${2:-7}" "${LLAVA_PYTHON:-python3}"
