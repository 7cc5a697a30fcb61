#!/usr/bin/env bash
# A run on SLURM, one process a node. Prints the job with --dry_run, submits it without.
#
#   scripts/launch/slurm.sh [--dry_run] NODES GPUS_A_NODE TIME CONFIG WORKDIR [--config.KEY=VALUE ...]
#   scripts/launch/slurm.sh 2 8 12:00:00 cifar10 /shared/runs/cifar10 --config.mesh.fsdp=8
#
# The processes find each other through SLURM's variables. SIGTERM comes two minutes before the end and on preemption: all
# save at one step and leave with 143, and the job is put back into the queue, where the same command resumes; also where a
# process was lost (137, 70), at most 20 times. FLOWJAX_SETUP, if set, is a line that each process runs first, such as
# "source /shared/venv/bin/activate".
set -euo pipefail
dry=; rest=()
for word in "$@"; do if [ "$word" = --dry_run ]; then dry=1; else rest+=("$word"); fi; done  # wherever it stands
set -- "${rest[@]+"${rest[@]}"}"
[ $# -ge 5 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
nodes=$1 gpus=$2 time=$3 config=$4 workdir=$5; shift 5
quoted=$(printf ' %q' flowjax train --config "$config" --workdir "$workdir" "$@")
inner=$(printf '%q' "${FLOWJAX_SETUP:-true}; exec$quoted")
job=$(cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=flowjax-$(basename "$workdir")
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$workdir.log
code=0
srun --kill-on-bad-exit=0 bash -c $inner || code=\$?
case \$code in 143 | 137 | 70) [ \${SLURM_RESTART_COUNT:-0} -ge 20 ] || scontrol requeue \$SLURM_JOB_ID ;; esac
exit \$code
EOF
)
if [ -n "$dry" ]; then printf '%s\n' "$job"; else printf '%s\n' "$job" | sbatch; fi
