# Shared by the scripts: from a bare Python >= 3.11 to a virtual environment with the pinned packages; how to say,
# refuse and show. Sourced, never run. Sets root (the checkout) and venv (the environment).
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${BRAINLDM_VENV:-$root/.venv}"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1

say() { echo "==> $*" >&2; }
fail() { echo "error: $*" >&2; exit 1; }
mistake() { echo "error: $*" >&2; exit 2; }

# usage: the lines at the top of the script that begin with "#   ", and exit code 2.
usage() { sed -n 's/^#   /usage: /p' "$0" >&2; exit 2; }

# quoted WORD...: the words on one line, ready to be pasted into a shell.
quoted() {
    local word line=""
    for word; do
        if [[ ! "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word="${word@Q}"; fi
        line+="${line:+ }$word"
    done
    echo "$line"
}

# step WORD...: runs a command, or shows it when dry_run is yes.
step() { if [[ "${dry_run:-no}" == yes ]]; then quoted "$@"; else "$@"; fi; }

# check_train TRAIN ARGUMENTS: both that every training run needs. Sets workdir.
check_train() {
    local word before="" config=""
    workdir=""
    for word; do
        case "$word" in
            --config=?*) config="${word#*=}" ;;
            --workdir=?*) workdir="${word#*=}" ;;
        esac
        case "$before" in
            --config) config="$word" ;;
            --workdir) workdir="$word" ;;
        esac
        before="$word"
    done
    if [[ -z "$config" || -z "$workdir" ]]; then usage; fi
}

# new_enough PYTHON: is it a Python >= 3.11 that starts?
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# can_make_venv PYTHON: Debian and Ubuntu ship ensurepip apart, in python3-venv.
can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# find_python: prints the interpreter to build with. $PYTHON, when set, is the only candidate.
find_python() {
    local candidate without_venv=""
    local candidates=(python3.11 python3.12 python3.13 python3.14 python3 python)
    if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        new_enough "$candidate" || continue
        if can_make_venv "$candidate"; then echo "$candidate"; return; fi
        without_venv="${without_venv:-$candidate}"
    done
    if [[ -n "$without_venv" ]]; then
        fail "$without_venv cannot make virtual environments: its ensurepip module is missing." \
            "On Debian and Ubuntu, run: sudo apt install python3-venv"
    elif [[ -n "${PYTHON:-}" ]]; then
        fail "PYTHON=$PYTHON is not a working Python >= 3.11."
    fi
    fail "no Python >= 3.11 found (tried ${candidates[*]})." \
        "Install one, or name it: PYTHON=/path/to/python3 $0"
}

# make_venv: makes the environment, or completes one whose making was interrupted.
make_venv() {
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        new_enough "$venv/bin/python" || fail "$venv holds a Python older than 3.11. Remove it and run again."
        return
    fi
    if [[ -e "$venv" && ! -e "$venv/pyvenv.cfg" && -n "$(ls -A "$venv")" ]]; then
        fail "$venv exists and is not a virtual environment. Set BRAINLDM_VENV to another folder."
    fi
    local python
    python="$(find_python)"
    say "making $venv with $python ($("$python" --version))"
    "$python" -m venv "$venv" || fail "could not make $venv. Remove it and run again."
}

# The state that an environment was installed from: the checkout, the locks and the package's own settings.
wanted() { echo "$root"; cat "$root"/requirements.txt "$root"/requirements-dev.txt "$root"/pyproject.toml; }
installed() { [[ -f "$venv/.brainldm-$1" ]] && wanted | cmp -s - "$venv/.brainldm-$1"; }

# install run|dev: the pinned packages and this checkout in editable mode, unless that is what is there.
install() {
    local lock="$root/requirements.txt"
    if [[ "$1" == dev ]]; then lock="$root/requirements-dev.txt"; fi
    make_venv
    # The dev lock holds everything that the run lock does.
    if installed dev || { [[ "$1" == run ]] && installed run; }; then return; fi
    rm -f "$venv/.brainldm-run" "$venv/.brainldm-dev"
    say "installing $(grep -c '==' "$lock") pinned packages from ${lock##*/} (some minutes the first time)"
    "$venv/bin/python" -m pip install --quiet --requirement "$lock"
    say "installing brainldm from $root"
    "$venv/bin/python" -m pip install --quiet --no-deps --editable "$root"
    wanted > "$venv/.brainldm-$1"
}
