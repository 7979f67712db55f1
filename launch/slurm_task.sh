#!/usr/bin/env bash
# One task of slurm.sbatch. srun ends with the highest exit code of all tasks, so 1 and 2 become 241 and 242: a task
# that failed must outweigh one that stopped because of it, with 75.
#
#   launch/slurm_task.sh COMMAND [ARGUMENTS]
if [[ $# -eq 0 ]]; then sed -n 's/^#   /usage: /p' "$0" >&2; exit 2; fi

trap : TERM # SLURM signals this shell too, which has to wait for the command
"$@"
code=$?
case "$code" in 1 | 2) exit $((code + 240)) ;; esac
exit "$code"
