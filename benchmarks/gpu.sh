#!/usr/bin/env bash
# All measurements on a GPU, in calls of at most nine minutes; a further call goes on with what is missing.
#
#   benchmarks/gpu.sh OUT                  results as JSON files below OUT (default: $OUT, else gpu-results)
#   benchmarks/gpu.sh --rehearse OUT       every piece at small size on the CPU
#   benchmarks/gpu.sh OUT --minutes 4 --only memory constraint
#   python benchmarks/gpu.py tables OUT    the results as tables, in benchmarks/RESULTS-gpu.md
#
# Uses $PYTHON, else .venv, else python3. If packages are missing, it installs only these in .venv-gpu, which sees the
# packages of that Python, so torch stays as it is. Without a package index it says what is missing and measures the rest.
set -euo pipefail

STARTED=$(date +%s)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

[ -x .venv-gpu/bin/python ] && python=.venv-gpu/bin/python
missing=$("$python" benchmarks/gpu.py missing)
if [ -n "$missing" ]; then
    echo "not installed: ${missing//$'\n'/, }"
    "$python" -m venv --system-site-packages .venv-gpu
    "$python" benchmarks/gpu.py installed > .venv-gpu/constraints.txt
    pip() {
        timeout "$1" .venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 \
            --constraint .venv-gpu/constraints.txt "${@:2}"
    }
    mapfile -t packages <<< "$missing"
    if ! pip 120 "${packages[@]}" 2> >(tee .venv-gpu/pip.log >&2); then
        # Where an index answers, one package may not fit the installed torch: try them one by one.
        if ! grep -qi "connection\|timed out\|name resolution" .venv-gpu/pip.log; then
            for package in "${packages[@]}"; do
                [ $(($(date +%s) - STARTED)) -gt 180 ] && break
                pip 60 "$package" 2> /dev/null || echo "could not install $package" >&2
            done
        fi
        echo "could not install all of them (see above); pieces that need them wait for a later call" >&2
    fi
    python=.venv-gpu/bin/python
fi
exec "$python" benchmarks/gpu.py run --started "$STARTED" "$@"
