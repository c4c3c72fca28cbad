#!/usr/bin/env bash
# Trains on few examples of a task: each number of examples with each seed, which also chooses them
# (more examples include the fewer of the same seed). Scores the base alone first; ends in a report.
#
#   bash scripts/few_shot.sh OUT EXPERIMENT BASE TASK [FLAG …]
#
# EXPERIMENT is a gin file such as experiments/glue_adalink.gin. FLAGs go to every train.py, and
# EVAL_FLAGS to eval.py. Run it again after an interruption: a finished run is not run again.
#
#   SHOTS="4 16 32 64"  SEEDS="0 1 2 3 4"  EVAL_FLAGS="--gin.VOCABULARY=spiece.model"
set -euo pipefail
(($# >= 4)) || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1 experiment=$2 base=$3 task=$4
shift 4
here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-$([[ -x $here/../.venv/bin/python ]] && echo "$here/../.venv/bin/python" || echo python)}

if [[ ! -e $out/zero_shot/results.json ]]; then
    # shellcheck disable=SC2086 # EVAL_FLAGS are several words.
    "$python" "$here/eval.py" --gin_file=runs/eval.gin --gin.ADAPTER_PATH=None \
        --gin.EVAL_OUTPUT_DIR="$out/zero_shot" --gin.INITIAL_CHECKPOINT_PATH="$base" \
        --gin.MIXTURE_OR_TASK_NAME="$task" \
        --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 16}" ${EVAL_FLAGS:-}
fi
for shots in ${SHOTS:-4 16 32 64}; do
    for seed in ${SEEDS:-0 1 2 3 4}; do
        run=$out/shots$shots/seed$seed
        echo "== $run"
        "$python" "$here/train.py" --gin_file="$experiment" --gin.MODEL_DIR="$run" \
            --gin.INITIAL_CHECKPOINT_PATH="$base" --gin.MIXTURE_OR_TASK_NAME="$task" \
            --gin.runs.train.few_shot="$shots" --gin.SEED="$seed" "$@"
    done
done
"$python" "$here/report.py" "$out" --to "$out/report" --title "$task from few examples"
