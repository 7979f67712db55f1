#!/usr/bin/env bash
# All tests, from a bare Python >= 3.11: installs what is needed, then runs pytest in the checkout, on two cores.
#
#   launch/test.sh [PYTEST ARGUMENTS]        for example: launch/test.sh -m "not slow", launch/test.sh tests/models -x
#
# Without arguments it also measures which lines of brainldm/ the tests reach, those of started processes included, and
# fails when that is less than it was. Where ../shared is not there, tests that read it are skipped and nothing fails.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

coverage=95 # percent of the lines; 96.3 were reached, and how far killed processes came moves it a little

install dev
cd "$root"
if [[ $# -eq 0 ]]; then
    set -- --cov --cov-report=term:skip-covered
    if [[ -d "$root/../shared" ]]; then set -- "$@" --cov-fail-under="$coverage"; fi
fi
exec "$venv/bin/python" -m pytest -n 2 --durations=25 "$@"
