#!/usr/bin/env bash
# Tables of methods on one GPU: sweeps of plans side by side, several trainings each, and their records kept, of those too
# that the time did not suffice for. What has records goes on from them.
#
#   PYTHON=python3 scripts/gpu_tables.sh <seconds> <trainings a sweep at a time> <folder with a plan.yaml> ...
#
# With NVIDIA's multi-process service, which is started where it is installed, small trainings share a GPU.
set -euo pipefail
set -m  # else what runs beside this script ignores the interrupt that ends it in time

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-.venv/bin/python}"
seconds="$1" jobs="$2"
shift 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if command -v nvidia-cuda-mps-control >/dev/null && ! pgrep -f nvidia-cuda-mps-control >/dev/null; then
    nvidia-cuda-mps-control -d
    trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
for folder in "$@"; do
    sweep="runs/benchmark/$(basename "$folder")"
    if [[ -f "$folder/records.jsonl" && ! -d "$sweep" ]]; then
        "$python" -m rebalance.experiments.record "$folder" "$sweep"
    fi
    timeout -s INT "$seconds" "$python" -m rebalance sweep plan="$folder/plan.yaml" device="${DEVICE:-0}" jobs="$jobs" \
        2>&1 | sed -u "s|^|$(basename "$folder"): |" &
done
wait
for folder in "$@"; do
    "$python" -m rebalance.experiments.record "runs/benchmark/$(basename "$folder")" "$folder" || true  # none is over yet
done
