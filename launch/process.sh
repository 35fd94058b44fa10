#!/usr/bin/env bash
# One process of a run: the accelerator's environment, then main.
#
#     launch/process.sh gpu|tpu <flags of main>
#
# SIGTERM goes on to main, which saves and exits 0; this script then exits 143, so that
# whatever started it can tell a run that was stopped from one that is finished, and
# start it again. PYTHON names the interpreter; by default .venv/bin/python.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/cli.sh
source "$root/launch/cli.sh"
case ${1:-} in
  gpu | tpu) ;;
  --help | -h) show_help && exit ;;
  *) die "got '${1:-}'; wanted launch/process.sh gpu|tpu <flags of main>" ;;
esac
# shellcheck source=launch/env.sh
source "$root/launch/env.sh" "$1"
shift

cd "$root"
told="" child=""
pass_on() {
  told=1
  [[ ! $child ]] || kill -TERM "$child" 2> /dev/null || true
}
trap pass_on TERM
"${PYTHON:-.venv/bin/python}" -m flowtok_jax.main "$@" &
child=$!
[[ ! $told ]] || pass_on # it came before there was a child
status=0
# A signal interrupts wait; main is over only when it is gone.
while :; do
  wait "$child" && status=0 || status=$?
  kill -0 "$child" 2> /dev/null || break
done
if [[ $told ]] && ((status == 0)); then
  exit 143
fi
exit "$status"
