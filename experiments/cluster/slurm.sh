#!/usr/bin/env bash
# One run on Slurm: a Ray node on each machine of the allocation, the command on the first of them.
#
#   sbatch experiments/cluster/slurm.sh experiments/cifar10_ipc10.yaml /shared/runs/ipc10 --set cluster.num_workers=4
#
# CONFIG.yaml, the folder for results, then further options of `ray-distill distill`. If the folder holds a run, it goes on
# with that: submit the same line again after a run was stopped, or let Slurm do it (--requeue).
#
# Change: the lines that begin with #SBATCH, and the line that puts `ray` and `ray-distill` on the path. The folder for
# results must be one that all machines see. For GPUs, uncomment --gpus-per-node and give --set cluster.use_gpu=true.
# Checked: the order of commands, what a signal does and the exit codes, with stand-ins for Slurm's and Ray's commands. Not
# tried: no Slurm has seen it.
#SBATCH --job-name=ray-distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
##SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --output=ray-distill-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# SIGTERM for this script two minutes before the time is up: the run ends with its checkpoint, and MLflow says KILLED.
#SBATCH --signal=B:TERM@120
set -euo pipefail
if (($# < 2)); then
    echo "usage: sbatch slurm.sh CONFIG.yaml RESULTS [options of ray-distill distill]" >&2
    exit 2
fi
config=$1 results=$2
shift 2
export PATH="${RAY_DISTILL_BIN:-$PWD/.venv/bin}:$PATH"

# A token for this run alone: whoever has it may run commands on these machines.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
# A path as short as this one, since Ray's sockets lie below it; on each machine's own disk.
temporary=/tmp/rd-$SLURM_JOB_ID
port=$((20000 + SLURM_JOB_ID % 10000))
# One core of each machine stays with Ray's own processes: where all compute, workers wait for them.
cpus=$((SLURM_CPUS_PER_TASK > 1 ? SLURM_CPUS_PER_TASK - 1 : 1))

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
# Becomes a command on one machine; to be called in a subshell or in the background, whose id is then that of srun.
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
all_there="import os, ray, sys; ray.init(logging_level='ERROR'); sys.exit(len([n for n in ray.nodes() if n['Alive']]) < ${#machines[@]})"
for attempt in {1..30}; do
    if (on "$head" python -c "$all_there" 2>/dev/null); then break; fi
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
# A signal ends the first wait; the command takes some seconds more.
while kill -0 "$run" 2>/dev/null; do
    code=0
    wait "$run" || code=$?
done
exit "$code"
