#!/usr/bin/env bash
# Starts N processes of main on this machine's CPU, as if on N hosts.
#
#     launch/local_cluster.sh [options] N -- <flags of main>
#     launch/local_cluster.sh 2 -- --config=configs/demo.py --workdir=runs/two
#
#   --devices=D      CPU devices of each process (or the variable DEVICES; default 1)
#   --port=P         of the coordinator on 127.0.0.1 (default: a free one)
#   --grace=SECONDS  for the others to end by themselves once one has failed (default 30)
#   --dry-run        print the commands, run nothing
#
# Every line of output begins with its process. SIGTERM and Ctrl-C make all of them save
# and stop; the second one kills them. The exit status is the first one that is not 0, or
# 130 after Ctrl-C. PYTHON names the interpreter; by default .venv/bin/python.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/cli.sh
source "$root/launch/cli.sh"
usage="wanted launch/local_cluster.sh [options] N -- <flags of main>; see --help"

devices=${DEVICES:-} port="" grace=30 count=""
while (($#)); do
  case $1 in
    --help | -h) show_help && exit ;;
    --dry-run) DRY_RUN=1 ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --) shift && break ;;
    -*) die "unknown option $1; $usage" ;;
    *) [[ ! $count ]] || die "got $count and $1; $usage" && count=$1 ;;
  esac
  shift
done
[[ $count =~ ^[1-9][0-9]*$ ]] || die "got '$count' processes; $usage"
[[ $devices =~ ^([1-9][0-9]*)?$ ]] || die "--devices=$devices: wanted a number from 1"
[[ $port =~ ^[0-9]*$ ]] || die "--port=$port: wanted a number"
[[ $grace =~ ^[0-9]+$ ]] || die "--grace=$grace: wanted seconds"
(($#)) || die "no flags of main; $usage"
python=${PYTHON:-.venv/bin/python}
cd "$root"
need "$python" "make it with \`make .venv/run\`, or name another one in PYTHON"

# Below 32768, where Linux hands out ports of its own accord.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
  done
  echo "$port"
}
: "${port:=$(free_port)}"

# CPU also where there is a GPU, which two processes cannot share.
variables=("JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}" PYTHONUNBUFFERED=1)
[[ ! $devices ]] || variables+=("JAX_NUM_CPU_DEVICES=$devices")
common=("--coordinator=127.0.0.1:$port" "--num_processes=$count")
command_of() {
  command=(env "${variables[@]}" "$python" -m flowtok_jax.main
    "${common[@]}" "--process_id=$1" "${@:2}")
}
if [[ ${DRY_RUN:-} ]]; then
  for ((i = 0; i < count; i++)); do
    command_of "$i" "$@"
    printf '%s &\n' "$(quoted "${command[@]}")"
  done
  echo wait
  exit
fi

pids=() prefixers=() first=0 interrupted="" asked="" kill_at=""
prefix() {
  trap '' INT TERM # what a process says while it stops is wanted too
  local line
  while IFS= read -r line || [[ $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}
signal_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    [[ ! $pid ]] || kill "-$1" "$pid" 2> /dev/null || true
  done
}
# shellcheck disable=SC2329 # the traps call it
stop() {
  if [[ $asked ]]; then
    signal_all KILL
  else
    asked=1 kill_at=$((SECONDS + 60))
    signal_all TERM
  fi
}
trap 'interrupted=1; stop' INT
trap stop TERM

for ((i = 0; i < count; i++)); do
  command_of "$i" "$@"
  exec {out}> >(prefix "$i")
  prefixers+=("$!")
  "${command[@]}" >&"$out" 2>&1 {out}>&- &
  pids+=("$!")
  exec {out}>&-
done
[[ ! $asked ]] || signal_all TERM # it came while they were started

left=$count fail_at=""
while ((left)); do
  for i in "${!pids[@]}"; do
    pid=${pids[i]}
    if [[ ! $pid ]] || kill -0 "$pid" 2> /dev/null; then
      continue
    fi
    wait "$pid" && status=0 || status=$?
    pids[i]="" left=$((left - 1))
    if ((status)); then
      printf 'process %s exited with status %s\n' "$i" "$status" >&2
      ((first)) || first=$status
      : "${fail_at:=$((SECONDS + grace))}"
    fi
  done
  ((left)) || break
  if [[ $kill_at ]]; then
    ((SECONDS < kill_at)) || signal_all KILL
  elif [[ $fail_at ]] && ((SECONDS >= fail_at)); then
    printf 'stopping the others, %s s after the first failure\n' "$grace" >&2
    kill_at=$((SECONDS + 10))
    signal_all TERM
  fi
  sleep 0.1 &
  wait "$!" || true # unlike sleep itself, ends at a signal
done
for pid in "${prefixers[@]}"; do
  wait "$pid" 2> /dev/null || true
done
[[ ! $interrupted ]] || first=130
exit "$first"
