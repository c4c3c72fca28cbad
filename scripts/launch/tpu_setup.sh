#!/usr/bin/env bash
# Puts this checkout's commit and its environment on all hosts of a TPU pod slice, once before
# tpu_pod.sh, and again after a commit:
#   scripts/launch/tpu_setup.sh NAME ZONE [EXTRAS]     EXTRAS as in setup.py; default tpu
# Each host gets the folder adalink_jax in its home, with .venv in it. Ubuntu 22.04, of which TPU
# images are, has Python 3.10 at first and 3.11 among its packages.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 NAME ZONE [EXTRAS]" >&2
    exit 2
fi
name=$1 zone=$2 extras=${3:-tpu}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ -n $(git status --porcelain --untracked-files=no) ]]; then
    echo "note: changes that are not committed stay here" >&2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git archive --prefix=adalink_jax/ --output="$folder/adalink_jax.tar.gz" HEAD
gcloud compute tpus tpu-vm scp "$folder/adalink_jax.tar.gz" "$name:" --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="set -e
    tar -xzf adalink_jax.tar.gz
    if ! command -v python3.11 python3.12 python3.13 >/dev/null; then
        sudo apt-get -qq update
        sudo apt-get -qq install -y python3.11-venv
    fi
    bash adalink_jax/scripts/environment.sh $(printf '%q' "$extras")"
