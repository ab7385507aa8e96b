#!/usr/bin/env bash
# All that wants a GPU, in one call: its tests, the times of the losses, and the benchmark at 640 px with three seeds.
# The Python that it runs on must have the requirements; figures go to the folder given, default runs/gpu.
#
#   PYTHON=python3 scripts/gpu.sh [folder] [key=value of the benchmark ...]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-.venv/bin/python}"
out="${1:-runs/gpu}"
shift || true
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" -m pytest -m gpu tests
"$python" -m rebalance bench device=0 imgsz=640 batch=16 repeats=30 out="$out/bench.json"
"$python" -m rebalance benchmark preset=full device=0 name=gpu jobs=3 "$@"
cp -r runs/benchmark/gpu/{results.csv,summary.csv,report.md,report.html,plots} "$out"
