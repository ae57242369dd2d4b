#!/usr/bin/env bash
# All checks and measurements on one GPU, in under nine minutes: bash recipes/gpu/run.sh
#
# Results are JSON lines in $OUT (out/gpu by default). FASHION_MNIST may name a folder with the data set's four files.
# On a machine without a GPU: bash recipes/gpu/run.sh --device cpu --tiny
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD:$PWD/tests:$PWD/recipes/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
exec "${PYTHON:-python3}" -m recipes.gpu.driver --output "${OUT:-out/gpu}" "$@"
