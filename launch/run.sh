#!/usr/bin/env bash
# One command of brainldm with the settings of this machine's platform (flags.sh): one process, which uses every device
# that it sees, be it a CPU, one GPU or eight.
#
#   launch/run.sh [--dry-run] VERB [ARGUMENTS]
#
# For example: launch/run.sh train --config configs/paper_ldm.py --workdir runs/ldm --config.mesh.fsdp=2
# Checked on CPUs, and on recorded commands for GPU and TPU.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=launch/flags.sh
source "$root/launch/flags.sh"

dry_run=no
if [[ "${1:-}" == --dry-run ]]; then dry_run=yes; shift; fi
if [[ ! "${1:-}" =~ ^[a-z]+$ ]]; then usage; fi

found="$(settings "$(platform)")"
mapfile -t variables <<<"$found"
if [[ "$dry_run" == yes ]]; then
    quoted ${found:+env "${variables[@]}"} "$venv/bin/brainldm" "$@"
    exit
fi
if [[ ! -x "$venv/bin/brainldm" ]]; then mistake "$venv/bin/brainldm is missing. Run launch/setup.sh first."; fi
if [[ -n "$found" ]]; then export "${variables[@]}"; fi
exec "$venv/bin/brainldm" "$@"
