#!/usr/bin/env bash
# Trains and scores one task at several ranks; see `adalink rank-sweep --help`.
#
#   bash scripts/rank_sweep.sh OUT EXPERIMENT [FLAG …]
#
#   RANKS="1 4 16 64 256"  SEEDS="0 1 2"  BASES="checkpoints/a checkpoints/b"  JOBS=1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
adalink rank-sweep "$@" \
    ${RANKS:+--ranks "$RANKS"} ${SEEDS:+--seeds "$SEEDS"} ${BASES:+--bases "$BASES"} \
    ${JOBS:+--jobs "$JOBS"}
