#!/usr/bin/env bash
# Makes or refreshes .venv; says nothing where nothing has changed. Used by benchmark.sh and tests/run.sh.
#
#   PYTHON            the Python to use (3.10 or newer); default: python3, then python3.13 ... python3.10
#   REBALANCE_CACHE   folder of the heavy, shared part; default: ~/.cache/rebalance
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
candidates=(python3 python3.13 python3.12 python3.11 python3.10 python)
if [[ -n "${PYTHON:-}" ]]; then
    candidates=("$PYTHON")
fi
for python in "${candidates[@]}"; do
    if "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
        exec "$python" -I -B "$root/scripts/environment.py"
    fi
done
echo "rebalance: error: Python 3.10 or newer is needed; tried: ${candidates[*]}." \
    "Install one, or name it: PYTHON=/path/to/python3" >&2
exit 2
