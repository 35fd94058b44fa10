#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster, one process a GPU.
#
#     launch/gpu_slurm.sh [options] -- <flags of main>
#     launch/gpu_slurm.sh --time=24:00:00 -- --config=configs/h.py:1 --workdir=DIR
#
#   --nodes=N --gpus=N        nodes (default 1), GPUs of each (default 8)
#   --cpus=N                  CPU cores of each process (default 8)
#   --time=LIMIT              of one piece of the run (default 24:00:00)
#   --partition=P --account=A --name=NAME (default flowtok)
#   --sbatch=FLAG             any other flag of sbatch, as in --sbatch=--mem=0; repeatable
#   --restarts=N              how often to queue the job again (default 100)
#   --dry-run                 print the commands, run nothing
#
# DIR must be on a disk that all nodes share. The job gets SIGTERM 120 s before its time
# is up, or when Slurm preempts it: main saves, the job is queued again, and main resumes.
# scancel JOB ends it for good. Output: flowtok-JOB.log. PYTHON names the interpreter; by
# default .venv/bin/python, made with requirements-gpu.txt.
set -euo pipefail
# In a job this file is a copy elsewhere; sbatch --chdir has put us in the repository.
root=$PWD
if [[ ! ${SLURM_JOB_ID:-} ]]; then
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fi
if [[ ! -e $root/launch/cli.sh ]]; then
  echo "error: $root is not the repository; start the job with launch/gpu_slurm.sh" >&2
  exit 2
fi
# shellcheck source=launch/cli.sh
source "$root/launch/cli.sh"
cd "$root"

nodes=1 gpus=8 cpus=8 time=24:00:00 name=flowtok restarts=100 extra=()
while (($#)); do
  case $1 in
    --help | -h) show_help && exit ;;
    --dry-run) DRY_RUN=1 ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --cpus=*) cpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --partition=* | --account=*) extra+=("$1") ;;
    --sbatch=-*) extra+=("${1#*=}") ;;
    --) shift && break ;;
    *) die "unknown option $1; flags of main stand after --; see --help" ;;
  esac
  shift
done
for number in "nodes $nodes" "gpus $gpus" "cpus $cpus" "restarts $restarts"; do
  [[ $number =~ \ [0-9]+$ ]] || die "--${number/ /=}: wanted a number"
done
(($#)) || die "no flags of main; wanted them after --, as in -- --config=configs/h.py:1"
[[ $(flag_value workdir "$@") ]] || die "no workdir named; wanted --workdir=DIR after --"
python=${PYTHON:-.venv/bin/python}

submit() {
  need sbatch "run this on a login node of the cluster"
  need "$python" "make it: python3 -m venv .venv &&" \
    ".venv/bin/pip install -r requirements-gpu.txt"
  # --signal without B: goes to main itself, not to this script.
  run sbatch "--job-name=$name" "--chdir=$root" "--nodes=$nodes" \
    "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" "--cpus-per-task=$cpus" \
    "--time=$time" --signal=TERM@120 --requeue --open-mode=append \
    --output=flowtok-%j.log ${extra[@]+"${extra[@]}"} \
    launch/gpu_slurm.sh "--cpus=$cpus" "--restarts=$restarts" -- "$@"
}

# One process a GPU, as JAX wants it under Slurm: a process takes the GPU of its number
# on the node (SLURM_LOCALID) and no other, so all GPUs must be visible to all processes
# (--gpu-bind=none). A process that ends first must not end others that still save
# (--kill-on-bad-exit=0), unless they hang (--wait).
train() {
  run srun --gpu-bind=none "--cpus-per-task=$cpus" --kill-on-bad-exit=0 --wait=120 \
    bash launch/process.sh gpu "$@"
}

# Queues the job again, unless scancel has ended it.
requeue() {
  local state
  if ((${SLURM_RESTART_COUNT:-0} >= restarts)); then
    echo "stopped, and queued $restarts times already; that is enough" >&2
    return
  fi
  state=$(squeue --noheader "--jobs=$SLURM_JOB_ID" --format=%T)
  if [[ $state == RUNNING ]]; then
    run scontrol requeue "$SLURM_JOB_ID"
  else
    echo "stopped; the job is ${state:-gone} and not queued again" >&2
  fi
}

if [[ ! ${SLURM_JOB_ID:-} ]]; then
  submit "$@"
elif [[ ${DRY_RUN:-} ]]; then
  train "$@"
else
  export PYTHON=$python
  trap : TERM # where Slurm signals this script too, the processes still save
  status=0
  train "$@" || status=$?
  if ((status == 143)); then
    requeue
  fi
  exit "$status"
fi
