# Sourced by the sweeps. `training FLAG …` lists a command line of train.py; `train_all` reads such
# lines and trains them, JOBS at a time (default 1), each on its share of the cores.
# shellcheck shell=bash disable=SC2034
here=$(dirname "${BASH_SOURCE[0]}")
python=${PYTHON:-$([[ -x $here/../.venv/bin/python ]] && echo "$here/../.venv/bin/python" || echo python)}

training() {
    local word
    for word in "$@"; do printf "'%s' " "${word//\'/\'\\\'\'}"; done
    echo
}

train_all() { "$python" "$here/sweep.py" --jobs "${JOBS:-1}"; }
