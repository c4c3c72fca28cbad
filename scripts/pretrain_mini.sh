#!/usr/bin/env bash
# Makes the bases of the mini world; see `adalink pretrain-mini --help`.
#
#   bash scripts/pretrain_mini.sh OUT [FLAG …]
#
# TEXT_FILE and VOCABULARY, environment variables, make it train OUT/raw on that text.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/adalink.sh"
adalink pretrain-mini "$@"
