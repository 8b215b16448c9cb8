#!/usr/bin/env bash
# Trains on a TPU VM pod slice (or a single host): run on any machine with gcloud. Starts again unless it is done (0)
# or the config is wrong (2).
#
#   ./tpu_pod.sh NAME ZONE CONFIG [--option value ...]
#
# Every host of the slice has a checkout in ~/jaxdiff and can write to RUNS: gs://BUCKET/runs, or a folder that all share
# (Filestore). JAX finds coordinator, number and index of the processes in the TPU's metadata.
set -uo pipefail
name=$1 zone=$2 config=$3
shift 3
runs=${RUNS:?say where runs go: RUNS=gs://BUCKET/runs}

command="cd ~/jaxdiff && export JAX_COMPILATION_CACHE_DIR=\$HOME/.cache/jaxdiff/xla && \
while true; do uv run --extra tpu --extra gcs train.py $config --workdir $runs/$config $*; code=\$?; \
[ \$code -eq 0 ] || [ \$code -eq 2 ] && exit \$code; sleep 10; done"

until gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$command"; do
  code=$?
  [ $code -eq 2 ] && exit 2 # wrong config: trying again changes nothing
  state=$(gcloud compute tpus tpu-vm describe "$name" --zone "$zone" --format "value(state)")
  echo "ended with $code, the slice is ${state:-gone}; trying again in a minute" >&2
  sleep 60
done
