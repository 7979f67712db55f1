#!/usr/bin/env bash
# All tests, from a bare Python >= 3.11: installs what is needed, then runs pytest in the checkout.
#
#   launch/test.sh [PYTEST ARGUMENTS]        for example: launch/test.sh tests/models -x
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

install dev
cd "$root"
exec "$venv/bin/python" -m pytest "$@"
