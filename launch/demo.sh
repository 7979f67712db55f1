#!/usr/bin/env bash
# Everything end to end on a laptop, from a bare Python >= 3.11: installs what is needed, then runs `brainldm demo`.
#
#   launch/demo.sh [OUT]        results go to OUT (./demo when not given)
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

install run
exec "$venv/bin/brainldm" demo "${1:-demo}" "${@:2}"
