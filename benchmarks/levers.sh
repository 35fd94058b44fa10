#!/usr/bin/env bash
# What makes the flow listen to its caption: 1000 steps of the demo's t2i stage as it is,
# and with each of two settings taken back. Needs a finished `make demo`; about 2 minutes
# a run on two cores. Prints one line a run: accuracy on 512 held-out captions.
set -euo pipefail
cd "$(dirname "$0")/.."
demo=${1:-runs/demo} out=${2:-runs/levers}

run() {
  local name=$1; shift
  local place=$out/$name
  rm -rf "$place"
  mkdir -p "$place/checkpoints"
  cp -r "$demo"/checkpoints/{clip,tokenizer} "$place/checkpoints/"
  "${PYTHON:-.venv/bin/python}" -m flowtok_jax.main --config=configs/demo.py:t2i \
    --workdir="$place" --config.train.num_steps=1000 --config.log.preview_every=0 \
    --config.log.preview_samples=512 "$@" > "$place/log" 2>&1
  echo "$name: $(grep -o '"eval/attribute_accuracy_n512": [0-9.]*' "$place/metrics.jsonl")"
}

run as_is
run latent_scale_1 --config.tokenizer.latent_scale=1.0
run time_location_0 --config.loss.t2i.time_location=0.0
