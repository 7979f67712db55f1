#!/usr/bin/env bash
# Makes the environment that the other scripts use, or brings it up to date: the pinned packages, and JAX for an
# accelerator (cuda13 wants driver 580 or newer). Without a word: for the CPU.
#
#   launch/setup.sh [cuda13|cuda12|tpu]
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

extra="${1:-}"
if [[ $# -gt 1 || ! "$extra" =~ ^(cuda13|cuda12|tpu)?$ ]]; then usage; fi

install run
if [[ -n "$extra" ]]; then
    say "adding JAX for $extra"
    "$venv/bin/python" -m pip install --quiet --constraint "$root/requirements.txt" --editable "${root}[$extra]"
fi
