#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster: fills in gke_jobset.yaml and applies it.
#
#     launch/gke_jobset.sh --name=NAME --image=IMAGE [options] -- <flags of main>
#     launch/gke_jobset.sh --name=h --image=REGION-docker.pkg.dev/P/R/flowtok_jax \
#         -- --config=configs/h.py:1 --workdir=gs://BUCKET/h
#
#   --accelerator=LABEL    tpu-v5-lite-podslice (default), tpu-v6e-slice, tpu-v5p-slice
#   --topology=AxB         of the node pool (default 16x16)
#   --service_account=SA   Kubernetes service account that may write to the bucket
#                          (default: default)
#   --restarts=N           how often all pods start again (default 50)
#   --dry-run              print the command with the filled-in file, run nothing
#
# The node pool must be there, and JobSet installed; see launch/README.md. The same
# command, after kubectl delete jobset NAME, resumes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/cli.sh
source "$root/launch/cli.sh"

name="" image="" accelerator=tpu-v5-lite-podslice topology=16x16
service_account=default restarts=50
while (($#)); do
  case $1 in
    --help | -h) show_help && exit ;;
    --dry-run) DRY_RUN=1 ;;
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --service_account=*) service_account=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --) shift && break ;;
    *) die "unknown option $1; flags of main stand after --; see --help" ;;
  esac
  shift
done
word='^[A-Za-z0-9][A-Za-z0-9_./:@-]*$'
# Kubernetes puts the pods' numbers behind it, in at most 63 letters.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  die "--name='$name': wanted at most 40 of a-z, 0-9 and -, as in --name=h"
[[ $image =~ $word ]] || die "--image='$image': wanted an image, as in" \
  "--image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/flowtok_jax"
[[ $accelerator =~ $word ]] || die "--accelerator='$accelerator': wanted a label, see --help"
[[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] ||
  die "--topology='$topology': wanted 16x16, say, or 4x4x8 on v5p"
[[ $service_account =~ $word ]] || die "--service_account='$service_account': wanted a name"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts='$restarts': wanted a number"
(($#)) || die "no flags of main; wanted them after --, as in -- --config=configs/h.py:1"
workdir=$(flag_value workdir "$@")
[[ $workdir == gs://?* ]] || die "--workdir='$workdir': pods have no disk that lasts;" \
  "wanted --workdir=gs://BUCKET/PATH after --"
need kubectl "see launch/README.md"

# GKE machines of a slice have 4 chips; slices of up to 8 chips come as one machine.
chips=$((${topology//x/ * }))
per_machine=4
if ((chips < 4)); then
  per_machine=$chips
elif ((chips == 8)) && [[ $accelerator != tpu-v5p-slice ]]; then
  per_machine=8
fi

# Pods start when their machine has fetched the image: minutes apart the first time.
flags=""
for flag in --cluster_timeout=900 "$@"; do
  flags+=", '${flag//\'/\'\'}'"
done
manifest=$(< "$root/launch/gke_jobset.yaml")
fill() { # NAME VALUE
  manifest=${manifest//"\${$1}"/"$2"}
}
fill NAME "$name"
fill IMAGE "$image"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill SERVICE_ACCOUNT "$service_account"
fill RESTARTS "$restarts"
fill CHIPS "$per_machine"
fill MACHINES "$((chips / per_machine))"
fill FLAGS "[${flags#, }]"

if [[ ${DRY_RUN:-} ]]; then
  printf "kubectl apply -f - <<'END'\n%s\nEND\n" "$manifest"
else
  kubectl apply -f - <<< "$manifest"
fi
