#!/usr/bin/env bash
# What tpu_pod.sh runs on every worker of a slice, in the copied repository.
#
#     launch/tpu_worker.sh setup                  .venv with requirements-tpu.txt
#     launch/tpu_worker.sh start <flags of main>  main in the background, restarted if there
#     launch/tpu_worker.sh status                 one line: worker is STATE
#     launch/tpu_worker.sh follow                 the log, until main has ended
#     launch/tpu_worker.sh stop                   SIGTERM to main, which saves; waits for it
#
# STATE is none, running, finished, stopped (by this script), terminated (SIGTERM from
# elsewhere: the machine goes away), lost (killed, or the machine restarted), or
# failed-N with main's exit status. The log is runs/worker/log.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/cli.sh
source "$root/launch/cli.sh"
cd "$root"
place=runs/worker
boot_id=$(cat /proc/sys/kernel/random/boot_id)

# Whether a process is there and is this script's: numbers are used again.
lives() { # NUMBER SCRIPT
  grep -qs "launch/$2" "/proc/$1/cmdline"
}

state() {
  local what pid boot
  read -r what pid boot 2> /dev/null < "$place/state" || { echo none && return; }
  if [[ $what == running ]]; then
    [[ $boot == "$boot_id" ]] && lives "$pid" tpu_worker.sh || what=lost
  fi
  echo "$what"
}

# A newer Python than the machine's (TPU VMs have 3.10) comes with uv.
setup() {
  local stamp
  stamp=$(cat pyproject.toml requirements-tpu.txt | sha256sum)
  if [[ $(cat .venv/stamp 2> /dev/null) == "$stamp" ]]; then
    return
  fi
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --python '>=3.11' .venv
  python3 -m uv pip install --quiet --python .venv/bin/python -r requirements-tpu.txt
  printf '%s\n' "$stamp" > .venv/stamp
}

# In the background: runs main and writes down how it ended.
supervise() {
  printf 'running %s %s\n' "$$" "$boot_id" > "$place/state"
  trap : TERM # when all processes of the machine get one, still write the state
  local status=0
  bash launch/process.sh tpu "$@" >> "$place/log" 2>&1 &
  echo "$!" > "$place/pid"
  while :; do
    wait "$!" && status=0 || status=$?
    kill -0 "$!" 2> /dev/null || break
  done
  case $status in
    0) status=finished ;;
    143) [[ -e $place/stop ]] && status=stopped || status=terminated ;;
    *) status=failed-$status ;;
  esac
  printf '%s\n' "$status" > "$place/state.new"
  mv "$place/state.new" "$place/state"
}

stop() {
  local pid end=$((SECONDS + ${STOP_SECONDS:-90}))
  pid=$(cat "$place/pid" 2> /dev/null) || return 0
  lives "$pid" process.sh || return 0
  touch "$place/stop"
  kill -TERM "$pid" 2> /dev/null || true
  while lives "$pid" process.sh || [[ $(state) == running ]]; do
    if ((SECONDS > end)); then
      pkill -KILL -P "$pid" || true
    fi
    sleep 0.2
  done
}

start() {
  stop
  mkdir -p "$place"
  rm -f "$place"/{state,stop,pid}
  setsid nohup bash launch/tpu_worker.sh supervise "$@" \
    > /dev/null 2>&1 < /dev/null &
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    [[ $(state) == none ]] || return 0
    sleep 0.1
  done
  die "main did not start; see $root/$place/log on this worker"
}

follow() {
  local what pid boot
  read -r what pid boot 2> /dev/null < "$place/state" || return 0
  [[ $what == running && $boot == "$boot_id" ]] || pid=
  touch "$place/log"
  if [[ $pid ]]; then
    tail -n 20 -F "--pid=$pid" "$place/log" 2> /dev/null
  else
    tail -n 20 "$place/log"
  fi
}

verb=${1:-}
(($#)) && shift
case $verb in
  setup | start | stop | follow | supervise) "$verb" "$@" ;;
  status) echo "worker is $(state)" ;;
  --help | -h) show_help ;;
  *) die "got '$verb'; wanted setup, start, status, follow or stop" ;;
esac
