#!/usr/bin/env bash
# Makes .venv, installs, and adapts the embedded base with AdaLink: no download of data or weights.
#
#   bash scripts/quickstart.sh [RUNS]     RUNS takes the results; default runs/quickstart
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-runs/quickstart}
base=adalink_jax/bases/mini

bash scripts/environment.sh
echo
echo "1. The base, trained on instructions about a small world of generated sentences,"
echo "   meets a format that it has never seen: 'cola sentence: …' -> acceptable or unacceptable."
[[ -e $out/base/results.json ]] || .venv/bin/python scripts/eval.py \
    --gin_file=experiments/mini_eval.gin --gin.MIXTURE_OR_TASK_NAME=mini_cola \
    --gin.ADAPTER_PATH=None --gin.INITIAL_CHECKPOINT_PATH="$base" --gin.EVAL_OUTPUT_DIR="$out/base"
echo
echo "2. AdaLink of rank 4 learns the format; the base stays frozen."
.venv/bin/python scripts/train.py --gin_file=experiments/mini_adalink.gin \
    --gin.MIXTURE_OR_TASK_NAME=mini_cola --gin.TRAIN_STEPS=200 \
    --gin.INITIAL_CHECKPOINT_PATH="$base" --gin.MODEL_DIR="$out/adalink"
echo
echo "The adapter is in $out/adalink/adapter, its scores in $out/adalink/results.json, the base's own"
echo "score in $out/base/results.json. README.md goes on from here."
