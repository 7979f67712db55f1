#!/usr/bin/env bash
# A run that outlives the terminal and is run again after exit code 75 (again.sh). One at a time per user and machine.
#
#   launch/background.sh start COMMAND [ARGUMENTS]
#   launch/background.sh logs
#   launch/background.sh stop
#
# stop sends SIGTERM and waits until everything is saved. Log, lock and process id lie in $BRAINLDM_BACKGROUND, by
# default ~/brainldm-background.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

folder="${BRAINLDM_BACKGROUND:-$HOME/brainldm-background}"
# The run holds the lock: a process id from before a restart of the machine fools nobody.
running() { [[ -e "$folder/lock" ]] && ! flock --nonblock "$folder/lock" true; }

case "${1:-} $#" in
    "start "[2-9]* | "start "1[0-9]*)
        mkdir -p "$folder"
        if running; then fail "already running (process $(cat "$folder/pid")): launch/background.sh logs"; fi
        quoted "==> $(date -u +%FT%TZ)" "${@:2}" >>"$folder/log"
        # With a wait, because whoever asks whether it runs holds the lock for a moment.
        setsid flock --no-fork --timeout 5 "$folder/lock" "$root/launch/again.sh" "${@:2}" \
            >>"$folder/log" 2>&1 </dev/null &
        echo $! >"$folder/pid"
        until running || ! kill -0 $! 2>/dev/null; do sleep 0.1; done
        say "started (process $!), log: $folder/log"
        ;;
    "logs 1")
        if [[ ! -e "$folder/log" ]]; then fail "no run was started on this machine"; fi
        if running; then exec tail -n 200 --follow=name --pid="$(cat "$folder/pid")" "$folder/log"; fi
        exec tail -n 200 "$folder/log"
        ;;
    "stop 1")
        if ! running; then say "nothing is running"; exit; fi
        kill -TERM "$(cat "$folder/pid")"
        flock --wait 300 "$folder/lock" true || fail "still running after 300 s: $folder/log"
        say "stopped"
        ;;
    *) usage ;;
esac
