#!/usr/bin/env bash
# Trains and scores one task at several ranks; ends with a table and a report (OUT/report: CSV,
# Markdown, HTML, a plot of score by rank).
#
#   bash scripts/rank_sweep.sh OUT EXPERIMENT [FLAG …]
#
# EXPERIMENT is a gin file that sets RANK, e.g. experiments/glue_adalink.gin; FLAGs go to every
# train.py and name what the experiment requires, e.g. --gin.MIXTURE_OR_TASK_NAME=glue_rte. Run it
# again after an interruption: a finished run is not run again, a stopped one goes on.
#
#   RANKS="1 4 16 64 256"  SEEDS="0 1 2"
set -euo pipefail
(($# >= 2)) || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1 experiment=$2
shift 2
here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-$([[ -x $here/../.venv/bin/python ]] && echo "$here/../.venv/bin/python" || echo python)}

runs=()
for rank in ${RANKS:-1 4 16 64 256}; do
    for seed in ${SEEDS:-0}; do
        run=$out/rank$rank/seed$seed
        runs+=("$run")
        echo "== $run"
        "$python" "$here/train.py" --gin_file="$experiment" --gin.MODEL_DIR="$run" \
            --gin.RANK="$rank" --gin.SEED="$seed" "$@"
    done
done
"$python" "$here/report.py" "${runs[@]}" --to "$out/report" --title "Score by rank"
