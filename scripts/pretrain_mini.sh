#!/usr/bin/env bash
# Trains the bases of the mini world; see `adalink pretrain-mini --help`.
#
#   bash scripts/pretrain_mini.sh OUT [FLAG …]
#
# If the environment variables TEXT_FILE and VOCABULARY are set, it trains OUT/raw on that text.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
adalink pretrain-mini "$@"
