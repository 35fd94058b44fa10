# shellcheck shell=bash
# Sourced with `gpu` or `tpu`: the environment of a training process on A100 or TPU.
# What is already set wins: XLA and libtpu take the last of two equal flags.

# For XLA_FLAGS. A jaxlib aborts at a flag that it does not know; a test starts one with
# each of these.
gpu_flags=(
  # Runs gradient all-reduces beside the backward pass that makes the next ones. Off by
  # default; the one flag that NVIDIA's JAX images set
  # (docs.nvidia.com/jax-toolbox/environment-variables).
  --xla_gpu_enable_latency_hiding_scheduler=true
)
# For LIBTPU_INIT_ARGS; XLA_FLAGS does not know them.
tpu_flags=(
  # Runs gradient all-reduces beside the backward pass, those of small and large
  # parameters alike: what MaxText sets for data parallelism.
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  --xla_tpu_data_parallel_opt_different_sized_ops=true
)

case ${1:-} in
  gpu)
    export XLA_FLAGS="${gpu_flags[*]} ${XLA_FLAGS:-}"
    # JAX takes 75 % of the memory by default, 60 of 80 GB: too little for H at batch
    # 8192. What is left is for CUDA itself and for NCCL's buffers, which are not in it.
    export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.95}
    # No NCCL_*: NCCL finds NVLink and InfiniBand itself, and its documentation advises
    # against settings that stay in scripts. A cluster's own belong to /etc/nccl.conf.
    ;;
  tpu)
    export LIBTPU_INIT_ARGS="${tpu_flags[*]} ${LIBTPU_INIT_ARGS:-}"
    ;;
  *)
    printf 'error: env.sh: got %s; wanted gpu or tpu\n' "'${1:-}'" >&2
    exit 2
    ;;
esac
