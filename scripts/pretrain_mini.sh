#!/usr/bin/env bash
# Makes the bases of the mini world: raw by span corruption, then tuned on instructions.
#
#   bash scripts/pretrain_mini.sh OUT [FLAG …]
#
# OUT takes the runs, OUT/raw and OUT/tuned; a run's folder is a base for INITIAL_CHECKPOINT_PATH,
# and its adapter/ is what adalink_jax/bases holds. FLAGs go to every train.py. Run it again after
# an interruption: a finished run is not run again, a stopped one goes on. On a CPU of one kind the
# same seed gives the same bytes; another kind of CPU, or a GPU, sums in another order.
#
# With the environment variables TEXT_FILE (a text a line) and VOCABULARY (T5's SentencePiece file)
# it trains OUT/raw alone, on that text.
set -euo pipefail
(($# >= 1)) || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1
shift
here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-$([[ -x $here/../.venv/bin/python ]] && echo "$here/../.venv/bin/python" || echo python)}

raw=mini_raw
[[ -z ${TEXT_FILE:-} ]] || raw=text_raw
"$python" "$here/train.py" --gin_file="experiments/$raw.gin" --gin.MODEL_DIR="$out/raw" "$@"
[[ $raw == mini_raw ]] || exit 0
"$python" "$here/train.py" --gin_file=experiments/mini_tuning.gin --gin.MODEL_DIR="$out/tuned" \
    --gin.INITIAL_CHECKPOINT_PATH="$out/raw" "$@"
