#!/usr/bin/env bash
# Trains on a Cloud TPU slice, from nothing to a finished run, on all of its workers.
#
#     launch/tpu_pod.sh run --name=NAME --zone=ZONE --type=TYPE -- <flags of main>
#     launch/tpu_pod.sh logs|stop|down --name=NAME --zone=ZONE
#
#     launch/tpu_pod.sh run --name=h --zone=us-west4-a --type=v5litepod-256 -- \
#         --config=configs/h.py:1 --workdir=gs://BUCKET/h
#
# run   creates the slice or reuses it, copies the last commit to all workers, installs,
#       starts main on all of them, shows worker 0's log. When the slice is preempted or
#       a process fails, it does so again, and main resumes. Ctrl-C, or a lost connection,
#       ends only this script: the same command attaches again.
# logs  worker 0's log.    stop  all processes save and end.    down  deletes the slice.
#
#   --name=NAME --zone=ZONE --project=PROJECT   (or variables NAME, ZONE, PROJECT; project:
#                       gcloud's own by default)
#   --type=TYPE         v5litepod-256, v6e-64, v5p-128 (or the variable TYPE)
#   --runtime=VERSION   of the machine's image (default: Google's for JAX on that type)
#   --spot              a slice that may be preempted
#   --restarts=N        how often to start again in all (default 50)
#   --max_wait=HOURS    for a slice each time (default 72)
#   --dry-run           print the commands of a first run, run nothing
#
# Needs gcloud, logged in, and its key in ssh-agent: ssh-add ~/.ssh/google_compute_engine
# The exit status is 0 when main is finished or stopped, 2 for a mistake, else 1.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/cli.sh
source "$root/launch/cli.sh"
cd "$root"

name=${NAME:-} zone=${ZONE:-} project=${PROJECT:-} type=${TYPE:-} runtime=${RUNTIME:-}
spot="" restarts=50 max_wait=72 verb=${1:-}
poll=${POLL_SECONDS:-30} # between two looks at a slice
(($#)) && shift
case $verb in
  run | logs | stop | down) ;;
  --help | -h) show_help && exit ;;
  *) die "got '$verb'; wanted run, logs, stop or down; see --help" ;;
esac
while (($#)); do
  case $1 in
    --help | -h) show_help && exit ;;
    --dry-run) DRY_RUN=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=1 ;;
    --restarts=*) restarts=${1#*=} ;;
    --max_wait=*) max_wait=${1#*=} ;;
    --) shift && break ;;
    *) die "unknown option $1; flags of main stand after --; see --help" ;;
  esac
  shift
done

say() { printf 'tpu_pod: %s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

check_run() {
  local workdir
  workdir=$(flag_value workdir "$@")
  [[ $type =~ ^v[0-9a-z]+-[0-9]+$ ]] || die "--type='$type': wanted v5litepod-256, say"
  [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts: wanted a number"
  [[ $max_wait =~ ^[0-9]+$ ]] || die "--max_wait=$max_wait: wanted hours"
  (($#)) || die "no flags of main; wanted them after --, as in -- --config=configs/h.py:1"
  [[ $workdir ]] || die "no workdir named; wanted --workdir=gs://BUCKET/PATH after --"
  # All types have at most 8 chips, or 8 cores, on one worker.
  if [[ $workdir != gs://?* ]] && { ((${type##*-} > 8)) || [[ $spot ]]; }; then
    die "--workdir=$workdir is a disk of one worker, lost with it; wanted" \
      "--workdir=gs://BUCKET/PATH for several workers or --spot"
  fi
  if [[ ! $runtime ]]; then
    case $type in
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      *) die "no runtime known for $type; give --runtime=VERSION" ;;
    esac
  fi
  if [[ ! ${DRY_RUN:-} && $(git status --porcelain) ]]; then
    die "changes that are not committed would not reach the workers;" \
      "commit them first (git status lists them)"
  fi
}

[[ $name =~ ^[a-z][a-z0-9-]*$ ]] ||
  die "--name='$name': wanted a name for the slice, of letters, digits and -"
[[ $zone ]] || die "no zone; give --zone=ZONE"
need gcloud "see cloud.google.com/sdk/docs/install"
[[ $verb != run ]] || check_run "$@"

tpus=(gcloud compute tpus)
where=("--zone=$zone")
[[ ! $project ]] || where+=("--project=$project")
on_workers() { # WORKERS COMMAND
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}
worker=flowtok_jax/launch/tpu_worker.sh

# State and type of the slice, or of the request for it; nothing where there is none.
# list tells "not there" from "not allowed", as describe does not.
slice_is() {
  "${tpus[@]}" tpu-vm list "${where[@]}" \
    '--format=csv[no-heading](name.basename(),state,acceleratorType.basename())' |
    awk -F, -v name="$name" '$1 == name {print $2, $3}'
}
request_is() {
  "${tpus[@]}" queued-resources list "${where[@]}" \
    '--format=csv[no-heading](name.basename(),state.state)' |
    awk -F, -v name="$name" '$1 == name {print $2}'
}
create() {
  local command=("${tpus[@]}" queued-resources create "$name" "--node-id=$name"
    "${where[@]}" "--accelerator-type=$type" "--runtime-version=$runtime")
  [[ ! $spot ]] || command+=(--spot)
  run "${command[@]}" || fail "gcloud could not ask for $name; it says why above"
}
delete() {
  run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
}

replace_later() {
  delete || fail "gcloud could not delete $name; it says why above"
  asked="" was_ready=""
}

# Returns when the slice is ready, and asks for one where there is none.
was_ready="" asked=""
ensure_slice() {
  local slice request end=$((SECONDS + max_wait * 3600))
  while :; do
    slice=$(slice_is) || fail "gcloud could not list the slices; it says why above"
    case $slice in
      "READY $type") was_ready=1 && return ;;
      "READY "*) die "$name is a ${slice#* }, not a $type; give its --type, or another" \
        "--name, or delete it: launch/tpu_pod.sh down --name=$name --zone=$zone" ;;
    esac
    request=$(request_is) || fail "gcloud could not list the requests; it says why above"
    case $request in
      "")
        case $slice in
          "")
            [[ ! $was_ready ]] || fail "$name was deleted meanwhile; the same command" \
              "asks for it again"
            if [[ ! $asked ]]; then
              say "asking for $name, a $type"
              create
              asked=1
            fi
            ;;
          "STOPPED "* | "TERMINATED "* | "PREEMPTED "*)
            fail "$name is ${slice% *} and was made by hand; start or delete it:" \
              "gcloud compute tpus tpu-vm start|delete $name --zone=$zone"
            ;;
        esac
        ;;
      FAILED | SUSPENDED)
        [[ ! $asked || $request != FAILED ]] || fail "the request for $name failed; see" \
          "gcloud compute tpus queued-resources describe $name --zone=$zone"
        say "$name is $request; deleting it"
        replace_later
        ;;
      ACTIVE)
        case $slice in
          "PREEMPTED "* | "TERMINATED "*)
            say "$name is ${slice% *}; deleting it"
            replace_later
            ;;
        esac
        ;;
    esac
    ((SECONDS < end)) || fail "no slice after $max_wait hours ($request); the request" \
      "stays: run the same command again, or launch/tpu_pod.sh down"
    say "waiting for $name: ${request:-asked for} ${slice% *}"
    sleep "$poll"
  done
}

install() {
  local archive
  archive=${TMPDIR:-/tmp}/flowtok_jax-$name.tar.gz
  say "copying the last commit to all workers and installing"
  run git archive --format=tar.gz --prefix=flowtok_jax/ "--output=$archive" HEAD &&
    run "${tpus[@]}" tpu-vm scp "$archive" "$name:flowtok_jax.tar.gz" \
      "${where[@]}" --worker=all &&
    on_workers all "tar -xzf flowtok_jax.tar.gz && bash $worker setup"
}
# Pods come up one after the other: wait longer for one another than on one machine.
start() {
  say "starting main on all workers"
  on_workers all "bash $worker start $(quoted --cluster_timeout=300 "$@")"
}
# The states of all workers, in one line; fails where one cannot be reached.
states() {
  on_workers all "bash $worker status 2> /dev/null || echo worker is none" |
    sed -n 's/^worker is //p' | sort -u | tr '\n' ' '
}
follow() { on_workers 0 "bash $worker follow"; }

# What the states of all workers mean for the run, which is one program: it goes on only
# where all of its processes do.
verdict() {
  case " $1" in
    *" stopped "*) echo stopped ;;
    *" terminated "* | *" lost "*) echo gone ;; # whatever it did to the others
    *" failed-"[013-9]* | *" failed-2"[0-9]*) echo failed ;;
    *" failed-2 "*) echo mistake ;;
    *" none "* | " ") echo missing ;;
    *" running "*) echo running ;;
    *) echo finished ;;
  esac
}

supervise() {
  local seen failures=0 unreachable=0 starts=0 started_at=0 fresh=1
  while :; do
    ensure_slice
    if ! seen=$(states); then
      ((++unreachable < 20)) || fail "the workers of $name cannot be reached; the run" \
        "may go on there: the same command attaches again"
      say "a worker cannot be reached; looking again"
      sleep "$poll"
      continue
    fi
    unreachable=0
    # What was there before this script began does not count against the run.
    case $(verdict "$seen"),$fresh in
      running,*)
        fresh=""
        follow || true
        sleep "$poll"
        continue
        ;;
      finished,) say "finished" && return 0 ;;
      stopped,) say "stopped; the same command resumes" && return 0 ;;
      mistake,) die "main refused its flags; its line is above" ;;
      failed,)
        ((SECONDS - started_at < 3600)) || failures=0 # it had got somewhere
        ((++failures < 3)) || fail "main failed $failures times in a row" \
          "($seen); its log is above"
        ;;
      gone,) failures=0 ;;
    esac
    ((starts++ <= restarts)) || fail "started again $restarts times; that is enough"
    if install && start "$@"; then
      fresh="" started_at=$SECONDS
      follow || true
    else
      ((++failures < 3)) || fail "could not install or start on all workers"
      say "could not install or start on all workers; looking again"
      fresh=1
    fi
    sleep "$poll"
  done
}

dry_run() {
  local DRY_RUN=1
  create
  echo "# when $name is READY:"
  install "$@"
  start "$@"
  follow
  on_workers all "bash $worker status"
}

case $verb in
  run) if [[ ${DRY_RUN:-} ]]; then dry_run "$@"; else supervise "$@"; fi ;;
  logs) follow ;;
  stop) on_workers all "bash $worker stop" ;;
  down) delete ;;
esac
