#!/usr/bin/env bash
# Sets up .venv, then runs the tests in it. --setup-only stops after the set-up; other arguments go to pytest.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
"$root/scripts/setup.sh"
if [[ "${1:-}" == --setup-only ]]; then
    exit 0
fi

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# One thread: the tests' images are so small that a second costs more than it brings.
export YOLO_CONFIG_DIR="$scratch" MPLBACKEND=Agg OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
cd "$root"
"$root/.venv/bin/python" -m pytest "$@"
