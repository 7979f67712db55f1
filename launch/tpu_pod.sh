#!/usr/bin/env bash
# A TPU slice of any number of hosts: make it, set it up, train on it, look, stop, delete.
#
#   launch/tpu_pod.sh [--dry-run] create NAME ZONE TYPE [--spot]
#   launch/tpu_pod.sh [--dry-run] setup NAME ZONE [NFS_HOST:/EXPORT]
#   launch/tpu_pod.sh [--dry-run] run NAME ZONE --config FILE.py[:arg] --workdir DIR [--config.key=value ...]
#   launch/tpu_pod.sh [--dry-run] logs NAME ZONE [WORKER]
#   launch/tpu_pod.sh [--dry-run] stop NAME ZONE
#   launch/tpu_pod.sh [--dry-run] delete NAME ZONE
#
# --dry-run shows the commands. TYPE is an accelerator type, such as v5litepod-16. setup mounts the export on
# /mnt/shared of every host: work dir, data and a config of your own must lie where all hosts see them. A slice that
# was taken away: delete, create, setup and run again with the same words.
# Not run on a TPU: checked against the argument parser of gcloud 528 and recorded commands.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dry_run=no
if [[ "${1:-}" == --dry-run ]]; then dry_run=yes; shift; fi
verb="${1:-}" name="${2:-}" zone="${3:-}"
if [[ ! "$name" =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ || ! "$zone" =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]]; then usage; fi
shift 3

tpu() { step gcloud compute tpus tpu-vm "$@" "--zone=$zone"; }
on() { tpu ssh "$name" "--worker=$1" "--command=$2"; }

case "$verb" in
    create)
        if [[ $# -lt 1 || $# -gt 2 || "${2:---spot}" != --spot ]]; then usage; fi
        case "$1" in # the system that goes with the generation
            v[234]-[0-9]*) version=tpu-ubuntu2204-base ;;
            v5litepod-[0-9]*) version=v2-alpha-tpuv5-lite ;;
            v5p-[0-9]*) version=v2-alpha-tpuv5 ;;
            v6e-[0-9]*) version=v2-alpha-tpuv6e ;;
            *) version="${TPU_VERSION:-}" ;;
        esac
        version="${TPU_VERSION:-$version}"
        if [[ -z "$version" ]]; then mistake "$1: a type not known here. Name its system: TPU_VERSION=..."; fi
        tpu create "$name" "--accelerator-type=$1" "--version=$version" "${@:2}"
        ;;
    setup)
        if [[ $# -gt 1 || ! "${1:-host:/export}" =~ ^[A-Za-z0-9.-]+:/ ]]; then usage; fi
        archive="${TMPDIR:-/tmp}/brainldm-$name.tar.gz"
        step tar --create --gzip --file "$archive" --exclude=__pycache__ --directory "$root" \
            brainldm configs launch pyproject.toml requirements.txt requirements-dev.txt README.md LICENSE
        tpu scp "$archive" "$name:brainldm.tar.gz" --worker=all
        # The images are Ubuntu 22.04, whose own Python is 3.10.
        apt="sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300"
        command="$apt update && $apt install --yes python3.11 python3.11-venv nfs-common"
        if [[ $# -eq 1 ]]; then
            command+=" && sudo mkdir -p /mnt/shared"
            command+=" && { mountpoint -q /mnt/shared || sudo mount -t nfs $(quoted "$1") /mnt/shared; }"
        fi
        on all "$command && mkdir -p brainldm && tar -xzf brainldm.tar.gz -C brainldm && brainldm/launch/setup.sh tpu"
        ;;
    run)
        check_train "$@"
        if [[ "$workdir" != /* ]]; then mistake "--workdir $workdir: give a full path that all hosts see."; fi
        train="$(quoted launch/run.sh train "$@" --distributed)"
        on all "cd brainldm && BRAINLDM_PLATFORM=tpu launch/background.sh start $train"
        ;;
    logs)
        if [[ $# -gt 1 || ! "${1:-0}" =~ ^[0-9]+$ ]]; then usage; fi
        on "${1:-0}" "brainldm/launch/background.sh logs"
        ;;
    stop)
        if [[ $# -gt 0 ]]; then usage; fi
        on all "brainldm/launch/background.sh stop"
        ;;
    delete)
        if [[ $# -gt 0 ]]; then usage; fi
        tpu delete "$name"
        ;;
    *) usage ;;
esac
