#!/usr/bin/env bash
# Trains and scores one task at several ranks; ends with a table and a report (OUT/report: CSV,
# Markdown, HTML, a plot of score by rank).
#
#   bash scripts/rank_sweep.sh OUT EXPERIMENT [FLAG …]
#
# EXPERIMENT is a gin file that sets RANK, e.g. experiments/glue_adalink.gin; FLAGs go to every
# training and name what the experiment requires, e.g. --gin.MIXTURE_OR_TASK_NAME=glue_rte. Run it
# again after an interruption: a finished run is not run again, a stopped one goes on. JOBS is how
# many are trained at a time (on CPU; each takes its share of the cores).
#
#   RANKS="1 4 16 64 256"  SEEDS="0 1 2"  BASES="checkpoints/a checkpoints/b"  JOBS=1
set -euo pipefail
(($# >= 2)) || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/trainings.sh"
out=$1 experiment=$2
shift 2

for base in ${BASES:-""}; do
    for rank in ${RANKS:-1 4 16 64 256}; do
        for seed in ${SEEDS:-0}; do
            training "--gin_file=$experiment" "--gin.RANK=$rank" "--gin.SEED=$seed" \
                "--gin.MODEL_DIR=$out/${base:+$(basename "$base")/}rank$rank/seed$seed" \
                ${base:+"--gin.INITIAL_CHECKPOINT_PATH=$base"} "$@"
        done
    done
done | train_all
"$python" "$here/report.py" "$out" --to "$out/report" --title "Score by rank"
