#!/usr/bin/env bash
# Runs one command on all hosts of a TPU pod slice, in the checkout that tpu_setup.sh has put there:
#   scripts/launch/tpu_pod.sh NAME ZONE adalink train --gin_file=experiments/glue_adalink.gin \
#       --gin_file=hardware/tpu_v5e_4x8.gin --gin.MODEL_DIR=/shared/runs/rte …
# The hosts find each other through the pod's metadata. MODEL_DIR must be a folder that all of them
# see (a mounted bucket or file store). The same command, run again, continues the run.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: $0 NAME ZONE COMMAND…" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
# Quoted once more for the hosts' shells.
command=$(printf '%q ' "$@")
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n') # Host 0 takes only hosts that show it.
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd adalink_jax && source .venv/bin/activate && ADALINK_HOSTS_TOKEN=$token $command"
