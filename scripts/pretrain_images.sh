#!/usr/bin/env bash
# Trains the image world's encoder and bases; see `adalink pretrain-images --help`.
#
#   bash scripts/pretrain_images.sh OUT [FLAG …]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
adalink pretrain-images "$@"
