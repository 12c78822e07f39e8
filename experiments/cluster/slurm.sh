#!/usr/bin/env bash
# One run on Slurm: a Ray node on each machine of the allocation, and the command on the first.
#
#   sbatch experiments/cluster/slurm.sh experiments/cifar10_ipc10.yaml /shared/runs/ipc10 --set cluster.num_workers=4
#
# Arguments: CONFIG.yaml, the folder for the results, further options of `ray-distill distill`. A run in the folder is
# resumed: submit the same line again after it was stopped, or let Slurm do it (--requeue).
#
# Change: the lines that begin with #SBATCH, and the line that puts `ray` and `ray-distill` on the path. The folder for
# the results must be shared by all machines. For GPUs, uncomment --gpus-per-node and add --set cluster.use_gpu=true.
# Tested: the order of commands, signals and exit codes, with stubs for Slurm's and Ray's commands. Not tested: on Slurm.
#SBATCH --job-name=ray-distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
##SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --output=ray-distill-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# SIGTERM to this script two minutes before the time limit: the run keeps its checkpoint and is marked KILLED in MLflow.
#SBATCH --signal=B:TERM@120
set -euo pipefail
if (($# < 2)); then
    echo "usage: sbatch slurm.sh CONFIG.yaml RESULTS [options of ray-distill distill]" >&2
    exit 2
fi
config=$1 results=$2
shift 2
export PATH="${RAY_DISTILL_BIN:-$PWD/.venv/bin}:$PATH"

# A token for this run only: anyone who has it can run commands on these machines.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
# On each machine's own disk, and short: Ray's sockets are below it, and the length of their paths is limited.
temporary=/tmp/rd-$SLURM_JOB_ID
port=$((20000 + SLURM_JOB_ID % 10000))
# One core of each machine is left to Ray's own processes; otherwise workers wait for them.
cpus=$((SLURM_CPUS_PER_TASK > 1 ? SLURM_CPUS_PER_TASK - 1 : 1))

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
# Replaces the shell by a command on one machine: call it in a subshell or in the background, so that $! is srun's.
on() {
    local machine=$1
    shift
    exec srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodelist="$machine" "$@"
}
head_ip=$(on "$head" hostname --ip-address | awk '{print $1; exit}')
export RAY_ADDRESS=$head_ip:$port

steps=() run=
end() {
    if ((${#steps[@]})); then kill "${steps[@]}" 2>/dev/null || true; fi
}
trap end EXIT
stop() { if [[ $run ]]; then kill -TERM "$run" 2>/dev/null || true; else exit 143; fi; }
trap stop TERM

on "$head" ray start --block --head --node-ip-address="$head_ip" --port="$port" --num-cpus="$cpus" --temp-dir="$temporary" &
steps+=($!)
for machine in "${machines[@]:1}"; do
    on "$machine" ray start --block --address="$RAY_ADDRESS" --num-cpus="$cpus" --temp-dir="$temporary" &
    steps+=($!)
done
all_joined="import os, ray, sys; ray.init(logging_level='ERROR'); sys.exit(len([n for n in ray.nodes() if n['Alive']]) < ${#machines[@]})"
for attempt in {1..30}; do
    if (on "$head" python -c "$all_joined" 2>/dev/null); then break; fi
    if ((attempt == 30)); then
        echo "not all of ${machines[*]} have joined the Ray cluster at $RAY_ADDRESS" >&2
        exit 1
    fi
    sleep "${RAY_DISTILL_POLL_S:-5}"
done

resume=()
if [[ -e $results/run.json ]]; then resume=(--resume); fi
on "$head" ray-distill distill "$config" --out "$results" "${resume[@]}" "$@" &
run=$!
code=0
wait "$run" || code=$?
# A signal interrupts the first wait; the command needs some more seconds.
while kill -0 "$run" 2>/dev/null; do
    code=0
    wait "$run" || code=$?
done
exit "$code"
