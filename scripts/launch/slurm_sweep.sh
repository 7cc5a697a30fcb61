#!/usr/bin/env bash
# A sweep on SLURM: one task of an array for each point of the grid. Prints the job with --dry_run, submits it without.
#
#   scripts/launch/slurm_sweep.sh [--dry_run] GPUS TIME CONFIG WORKDIR KEY=VALUES ... [--config.KEY=VALUE ...]
#   scripts/launch/slurm_sweep.sh 1 2:00:00 cifar10 /shared/runs/lr train.lr=1e-4,3e-4 seed=0..4
#
# Afterwards `flowjax sweep` with the same arguments and --collect makes the table. FLOWJAX_SETUP as for slurm.sh.
set -euo pipefail
dry=; rest=()
for word in "$@"; do if [ "$word" = --dry_run ]; then dry=1; else rest+=("$word"); fi; done  # wherever it stands
set -- "${rest[@]+"${rest[@]}"}"
[ $# -ge 5 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
gpus=$1 time=$2 config=$3 workdir=$4; shift 4
grid=(--grid "$@")
points=$(flowjax sweep --config "$config" --workdir "$workdir" --dry_run "${grid[@]}" |
  python3 -c 'import json, sys; print(len(json.load(sys.stdin)["points"]))')
quoted=$(printf ' %q' flowjax sweep --config "$config" --workdir "$workdir" "${grid[@]}")
inner=$(printf '%q' "${FLOWJAX_SETUP:-true}; exec$quoted --only \$SLURM_ARRAY_TASK_ID")
job=$(cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=flowjax-$(basename "$workdir")
#SBATCH --array=0-$((points - 1))
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=$gpus
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=$workdir.%a.log
code=0
srun bash -c $inner || code=\$?
case \$code in 143 | 137) [ \${SLURM_RESTART_COUNT:-0} -ge 20 ] || scontrol requeue \$SLURM_JOB_ID ;; esac
exit \$code
EOF
)
if [ -n "$dry" ]; then printf '%s\n' "$job"; else printf '%s\n' "$job" | sbatch; fi
