#!/usr/bin/env bash
# A short list of tests on several releases of the hosts and of Python, each in an environment of its own, and a table.
#
#   tests/matrix.sh                              all combinations
#   tests/matrix.sh 8.4.180 3.12                 those whose names have all of these words
#   TESTS="tests/train" tests/matrix.sh          other tests
#   REBALANCE_CACHE                              where the environments are kept; default: ~/.cache/rebalance
#
# A combination is Python, torch, torchvision and Ultralytics. An Ultralytics alone costs a few megabytes: combinations
# of the same Python and torch share the rest, some gigabytes, and .venv is taken where it has both. Ends with exit code
# 1 where one failed; one whose Python is not on this machine, or which cannot be installed, counts as failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache="${REBALANCE_CACHE:-$HOME/.cache/rebalance}/matrix"
combinations=(
    "3.11 2.12.1 0.27.1 8.4.190"
    "3.11 2.12.1 0.27.1 8.4.187"
    "3.11 2.12.1 0.27.1 8.4.183"
    "3.11 2.12.1 0.27.1 8.4.180"
    "3.10 2.4.1 0.19.1 8.4.180"
    "3.10 2.4.1 0.19.1 8.4.190"
    "3.12 2.11.0 0.26.0 8.4.180"
    "3.12 2.11.0 0.26.0 8.4.190"
)
read -r -a tests <<<"${TESTS:-tests/test_versions.py tests/hosts/test_insides.py tests/hosts/ultralytics tests/hosts/torchvision tests/train/test_api.py tests/train/test_resumable.py}"

python_of() { # an interpreter of a version; what pyenv has on PATH may be a name without one
    local found
    for found in "python$1" $(ls -d "$HOME"/.pyenv/versions/"$1".*/bin/python 2>/dev/null | sort -rV); do
        if "$found" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$found"
            return
        fi
    done
    return 1
}

shared_of() { # python torch torchvision: the environment with all but Ultralytics
    local has
    has="$(.venv/bin/python -c 'import sys; from importlib.metadata import version as v
print("%d.%d" % sys.version_info[:2], v("torch").split("+")[0], v("torchvision").split("+")[0])' 2>/dev/null || true)"
    if [[ "$has" == "$1 $2 $3" ]]; then echo "$PWD/.venv"; else echo "$cache/$1-$2-$3"; fi
}

install() { # python torch torchvision ultralytics: the two environments, where they are not there
    local shared host="$cache/ultralytics-$4" python
    shared="$(shared_of "$1" "$2" "$3")"
    if [[ "$shared" != "$PWD/.venv" && ! -e "$shared/complete" ]]; then
        rm -rf "$shared"
        python="$(python_of "$1")" || { echo "no Python $1 here" && return 1; }
        "$python" -m venv "$shared"
        grep -vE '^(torch|torchvision|ultralytics|ruff|mypy|mkdocs-material|playwright|cleanlab)==' requirements.txt >"$shared/rest.txt"
        "$shared/bin/pip" install -q "torch==$2" "torchvision==$3" -r "$shared/rest.txt"
        "$shared/bin/pip" install -q ultralytics==8.4.190  # for what it needs itself
        "$shared/bin/pip" uninstall -qy ultralytics
        touch "$shared/complete"
    fi
    if [[ ! -e "$host/complete" ]]; then
        rm -rf "$host"
        "$shared/bin/pip" install -q --no-deps --target "$host" "ultralytics==$4"
        touch "$host/complete"
    fi
}

failed=0
rows=()
mkdir -p "$cache"
for combination in "${combinations[@]}"; do
    for word in "$@"; do
        [[ " $combination " == *" $word "* ]] || continue 2
    done
    read -r python torch torchvision ultralytics <<<"$combination"
    log="$cache/${combination// /-}.log"
    settings="$(mktemp -d)"
    if ! install "$python" "$torch" "$torchvision" "$ultralytics" >"$log" 2>&1; then
        told="not installed: $(tail -1 "$log")"
        failed=1
    elif PYTHONPATH="$cache/ultralytics-$ultralytics:$PWD" YOLO_CONFIG_DIR="$settings" MPLBACKEND=Agg OMP_NUM_THREADS=1 \
        "$(shared_of "$python" "$torch" "$torchvision")/bin/python" -m pytest -q -p no:cacheprovider -m "not slow" "${tests[@]}" >"$log" 2>&1; then
        told="$(tail -1 "$log")"
    else
        told="FAILED $(tail -1 "$log"), see $log"
        failed=1
    fi
    rm -rf "$settings"
    rows+=("$(printf '%-8s%-9s%-13s%-13s%s' "$python" "$torch" "$torchvision" "$ultralytics" "$told")")
done
if [[ ${#rows[@]} == 0 ]]; then
    echo "matrix: no combination has all of: $*; there are:" >&2
    printf '  %s\n' "${combinations[@]}" >&2
    exit 2
fi
printf '%-8s%-9s%-13s%-13s%s\n' Python torch torchvision Ultralytics tests
printf '%s\n' "${rows[@]}"
exit "$failed"
