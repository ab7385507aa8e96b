#!/usr/bin/env bash
# Sets up .venv, then runs the tests in it, in two processes. --setup-only stops after the set-up; other arguments go to
# pytest: -n 0 runs them in one process, for a debugger.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
if [[ "${1:-}" != --setup-only ]]; then
    # A file's tests stay together, for what they share; one that hangs fails, and the others go on
    exec .venv/bin/python -m pytest -n 2 --dist loadfile --timeout 900 "$@"
fi
