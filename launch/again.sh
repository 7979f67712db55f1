#!/usr/bin/env bash
# Runs a command, and again while it ends with 75: stopped with everything saved, to be run again. Every other exit
# code is passed on. SIGTERM, SIGINT and SIGHUP reach the command once, as SIGTERM, and end the repetition.
#
#   launch/again.sh COMMAND [ARGUMENTS]
#
# AGAIN_LIMIT: repetitions at most (100); AGAIN_PAUSE: seconds before each (10).
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [[ $# -eq 0 ]]; then usage; fi

stopping=no
stop() {
    if [[ "$stopping" == no ]]; then kill -TERM "$child" 2>/dev/null || true; fi
    stopping=yes
}

for ((turn = 1; ; turn++)); do
    # In a session of its own: Ctrl-C at the terminal would otherwise be a second signal to it.
    setsid "$@" &
    child=$!
    trap stop TERM INT HUP
    while kill -0 "$child" 2>/dev/null; do sleep 0.5; done
    code=0
    wait "$child" || code=$?
    if [[ "$code" != 75 || "$stopping" == yes ]]; then exit "$code"; fi
    if ((turn > ${AGAIN_LIMIT:-100})); then say "run again ${AGAIN_LIMIT:-100} times: enough"; exit "$code"; fi
    say "exit code 75: running it again in ${AGAIN_PAUSE:-10} s ($turn)"
    trap - TERM INT HUP
    sleep "${AGAIN_PAUSE:-10}"
done
