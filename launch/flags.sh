# Settings of XLA and JAX per platform, each with its reason. The library sets none of them.
# Sourced, never run. What the environment sets already wins: XLA_FLAGS and LIBTPU_INIT_ARGS go on working.
# Checked: jaxlib 0.10.2 knows the GPU flag, libtpu 0.0.42 those for TPUs. No speed was measured.
# shellcheck shell=bash

# platform: gpu, tpu or cpu, by what this machine has. BRAINLDM_PLATFORM, when set, is taken as it is.
platform() {
    if [[ -n "${BRAINLDM_PLATFORM:-}" ]]; then
        echo "$BRAINLDM_PLATFORM"
    elif nvidia-smi -L >/dev/null 2>&1; then
        echo gpu
    elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        echo tpu
    else
        echo cpu
    fi
}

# settings PLATFORM: prints NAME=VALUE lines.
settings() {
    case "$1" in
        gpu)
            # Sums gradients over devices while other work goes on, instead of after it.
            echo "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
            # The run has the device to itself: more than JAX's 75 %, with room left for NCCL and cuDNN.
            echo "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
            ;;
        # None for TPUs: with libtpu 0.0.42 the asynchronous-collective flags that recipes name are the defaults (a
        # compiled step came out the same). --xla_tpu_enable_async_collective_fusion=false together with
        # --xla_enable_async_all_gather=false is for a run with mesh.fsdp > 1 that only just does not fit: its
        # temporaries shrank from 201 to 144 MiB in a small compiled step, at the price of waiting for each gather.
        tpu) ;;
        cpu) return ;; # XLA's defaults
        *) mistake "BRAINLDM_PLATFORM=$1: the platforms are cpu, gpu and tpu." ;;
    esac
}
