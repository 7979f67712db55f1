#!/usr/bin/env bash
# Tries to break every command for a while: mistyped arguments, odd config values and tables, hostile files.
#
#   launch/fuzz.sh MINUTES [--seed N] [--world FOLDER] [--limit SECONDS]
#   launch/fuzz.sh 1 --case N          one case again, with what it said
#
# FOLDER is what `brainldm demo --tiny` made (made first, in two minutes or so, when not given). Exits with 1 when a
# case ends in a trace, in another exit code than 0, 1, 2 or 75, without a word, or with a file changed that is not its
# output.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

minutes="${1:?how many minutes?}"
shift
install dev
cd "$root"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" PYTHONWARNINGS=ignore
if [[ " $* " != *" --world "* ]]; then
    world="$(mktemp -d)"
    trap 'rm -rf "$world"' EXIT
    "$venv/bin/brainldm" demo "$world/demo" --tiny >/dev/null
    set -- "$@" --world "$world/demo"
fi
"$venv/bin/python" tests/fuzzing.py --minutes "$minutes" "$@"
