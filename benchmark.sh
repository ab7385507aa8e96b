#!/usr/bin/env bash
# Sets up .venv, then runs the removal-percentage sweep and prints its table. Any key=value overrides a preset's.
#
#   ./benchmark.sh                   built-in data, YOLOv5n, minutes on a CPU
#   ./benchmark.sh preset=full       640 pixels, 3 seeds, for a GPU
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
"$root/scripts/setup.sh"
exec "$root/.venv/bin/rebalance" benchmark "$@"
