#!/usr/bin/env bash
# Runs N hosts on this machine, on its CPU: local.sh N COMMAND…
# DEVICES sets the number of devices per host (default 1). Each line of output names its host. If a
# host fails, the others end by themselves (after a minute they are killed). The exit code is that
# of the first host that failed. Needs bash 5.1.
set -uo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [DEVICES=n] $0 N COMMAND…" >&2
    exit 2
fi
hosts=$1
shift
port=$(python -c "
import socket
with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    print(free.getsockname()[1])")

ADALINK_HOSTS_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export ADALINK_HOSTS_TOKEN JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$hosts
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
pids=()
for ((host = 0; host < hosts; host++)); do
    JAX_PROCESS_ID=$host "$@" > >(sed -u "s/^/[host $host] /") 2> >(sed -u "s/^/[host $host] /" >&2) &
    pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null' INT TERM

code=0
reaper=
for ((left = hosts; left > 0; left--)); do
    { wait -n -p ended "${pids[@]}"; } 2>/dev/null # The shell's own word on a killed host.
    status=$?
    if [[ -z ${ended:-} ]]; then # It ended before the shell waited for it.
        for host in "${!pids[@]}"; do
            kill -0 "${pids[host]}" 2>/dev/null && continue
            ended=${pids[host]}
            { wait "$ended"; } 2>/dev/null
            status=$?
            break
        done
    fi
    for host in "${!pids[@]}"; do
        [[ ${pids[host]} == "${ended:-}" ]] || continue
        unset "pids[host]"
        if ((status != 0)); then
            echo "[local.sh] host $host ended with exit code $status" >&2
            if ((code == 0)); then
                code=$status
                (sleep 60 && kill -KILL "${pids[@]}") >/dev/null 2>&1 &
                reaper=$!
            fi
        fi
    done
done
[[ -z $reaper ]] || kill "$reaper" 2>/dev/null
exit "$code"
