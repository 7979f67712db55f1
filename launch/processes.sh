#!/usr/bin/env bash
# Training as N processes on this machine that find each other: one per GPU, or N on the CPU to try a distributed start.
# For the GPUs of one machine run.sh does the same with one process. On GPUs this was not run.
#
#   launch/processes.sh [--dry-run] N --config FILE.py[:arg] --workdir DIR [--config.key=value ...]
#
# Ends with 0, with 75 (run it again), or with the code of the process that failed first, and then stops the others.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=launch/flags.sh
source "$root/launch/flags.sh"

dry_run=no
if [[ "${1:-}" == --dry-run ]]; then dry_run=yes; shift; fi
count="${1:-}"
if [[ ! "$count" =~ ^[1-9][0-9]{0,2}$ ]]; then usage; fi
check_train "${@:2}"

on="$(platform)"
# The GPUs to use: those that CUDA_VISIBLE_DEVICES leaves, or the first ones.
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
if [[ "$on" == gpu ]] && ((${#gpus[@]} < count)); then mistake "$count processes, but ${#gpus[@]} visible GPUs."; fi

port=8476
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

stop() { kill -TERM "${running[@]}" 2>/dev/null || true; }
running=()
for ((i = 0; i < count; i++)); do
    command=("$root/launch/run.sh" train "${@:2}" --distributed
        --coordinator "127.0.0.1:$port" --num-processes "$count" --process-id "$i")
    if [[ "$on" == gpu ]]; then command=(env "CUDA_VISIBLE_DEVICES=${gpus[i]}" "${command[@]}"); fi
    if [[ "$dry_run" == yes ]]; then quoted "${command[@]}"; continue; fi
    # In sessions of their own: Ctrl-C at the terminal would otherwise be a second signal to each.
    setsid "${command[@]}" > >(sed -u "s/^/[$i] /") 2>&1 &
    running+=($!)
done
trap stop TERM INT HUP

worst=0
while ((${#running[@]})); do
    left=()
    for process in "${running[@]}"; do
        if kill -0 "$process" 2>/dev/null; then left+=("$process"); continue; fi
        code=0
        wait "$process" || code=$?
        if [[ "$code" == 0 || ("$worst" != 0 && "$worst" != 75) ]]; then continue; fi
        worst="$code"
        if [[ "$code" != 75 ]]; then failed_at="$SECONDS"; say "one process failed with $code: stopping the others"; fi
    done
    running=("${left[@]}")
    if [[ -n "${failed_at:-}" ]] && ((${#running[@]})); then
        # One that waits for the process that is gone does not notice SIGTERM. Most end by themselves within 30 s.
        if [[ -z "${told:-}" ]]; then stop; told=yes; fi
        if ((SECONDS - failed_at > ${PROCESSES_GRACE:-60})); then kill -KILL "${running[@]}" 2>/dev/null || true; fi
    fi
    sleep 0.2
done
exit "$worst"
