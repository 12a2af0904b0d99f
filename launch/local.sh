#!/usr/bin/env bash
# Runs one spatial-clap command as N processes of this machine that train together.
#
#   launch/local.sh N COMMAND ARGUMENTS...
#   launch/local.sh 2 train configs/spatial_clap.py --data data/mine --workdir runs/mine
#
# On CPUs, DEVICES (default 1) is how many devices each process has. On GPUs, process i takes GPU i,
# or the i-th of CUDA_VISIBLE_DEVICES where that is set; JAX_PLATFORMS=cpu leaves the GPUs alone.
# A signal to this script, or to its whole process group, reaches each process once.
set -euo pipefail

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/local.sh N COMMAND ARGUMENTS...   (N processes, at least 1)" >&2
    exit 2
fi
processes=$1
shift

python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
export JAX_NUM_PROCESSES=$processes
if [[ -n ${DEVICES:-} ]]; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi
if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
else
    count=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
    mapfile -t visible < <(seq 0 $((count - 1)))
fi
# As CUDA reads the list, what names no GPU (-1, NoDevFiles) ends it.
gpus=()
for gpu in "${visible[@]}"; do
    [[ $gpu =~ ^([0-9]+|(GPU|MIG)-.+)$ ]] || break
    gpus+=("$gpu")
done
# One card for two processes would end in both asking for all of its memory.
if ((${#gpus[@]} > 0 && ${#gpus[@]} < processes)) && ! [[ ${JAX_PLATFORMS:-} =~ ^cpu(,|$) ]]; then
    echo "launch/local.sh: $processes processes, but ${#gpus[@]} GPUs (${gpus[*]}): one each is" \
        "needed; start fewer, or set JAX_PLATFORMS=cpu" >&2
    exit 2
fi

# In a group of their own, the processes do not hear a signal to this one's twice; they end with
# this script where the system can see to that.
apart=()
if command -v setsid >/dev/null; then apart+=(setsid); fi
if setpriv --pdeathsig TERM true 2>/dev/null; then apart+=(setpriv --pdeathsig TERM); fi

pids=()
asked=0
ending=
# Signals reach all; the processes save and stop together.
trap 'asked=$((asked + 1)); kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM HUP

# What they say goes on until they end, whatever is sent to the group.
numbered() {
    trap '' INT TERM HUP
    exec sed -u "s/^/[$1] /"
}

for ((i = 0; i < processes; i++)); do
    (
        export JAX_PROCESS_ID=$i
        if ((${#gpus[@]} >= processes)); then export CUDA_VISIBLE_DEVICES=${gpus[i]}; fi
        exec "${apart[@]}" "$python" -m spatial_clap_jax "$@"
    ) > >(numbered "$i") 2> >(numbered "$i" >&2) &
    pids+=($!)
done

# The first that fails ends the others, which would wait for it for ever: they are asked, told, and
# killed. One that was interrupted (75) has told them itself.
end_all() {
    kill -TERM "${pids[@]}"
    sleep 10
    kill -TERM "${pids[@]}"
    sleep 5
    kill -KILL "${pids[@]}"
}

# Not by `wait -n`: of a process that ends while a signal comes, bash would lose the status.
status=0
running=("${pids[@]}")
while ((${#running[@]} > 0)); do
    # A signal to the group ends this one too, which is not worth a line.
    { sleep 0.2 || true; } 2>/dev/null
    for i in "${!running[@]}"; do
        if kill -0 "${running[i]}" 2>/dev/null; then continue; fi
        before=
        while [[ $before != "$asked" ]]; do
            before=$asked code=0
            wait "${running[i]}" || code=$?
        done
        unset "running[i]"
        if ((code != 0 && status == 0)); then
            status=$code
            if ((code != 75 && !asked)); then
                end_all 2>/dev/null &
                ending=$!
                disown
            fi
        fi
    done
done
if [[ -n $ending ]]; then kill "$ending" 2>/dev/null || true; fi
exit "$status"
