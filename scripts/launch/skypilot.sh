#!/usr/bin/env bash
# A run through SkyPilot, on any cloud or on Kubernetes, from this checkout. Prints the task with --dry_run.
#
#   scripts/launch/skypilot.sh [--dry_run] NODES ACCELERATORS CONFIG WORKDIR [--config.KEY=VALUE ...]
#   scripts/launch/skypilot.sh 2 H200:8 cifar10 /bucket/runs/cifar10 --config.mesh.fsdp=8
#
# FLOWJAX_BUCKET, such as s3://mine, is mounted at /bucket, so that WORKDIR outlives the machines. A managed job: after a
# preemption SkyPilot starts it again, and the same command resumes.
set -euo pipefail
dry=; rest=()
for word in "$@"; do if [ "$word" = --dry_run ]; then dry=1; else rest+=("$word"); fi; done  # wherever it stands
set -- "${rest[@]+"${rest[@]}"}"
[ $# -ge 4 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
nodes=$1 accelerators=$2 config=$3 workdir=$4; shift 4
[ -n "${FLOWJAX_BUCKET:-}" ] || echo "skypilot.sh: FLOWJAX_BUCKET is not set: $workdir goes with the machine" >&2
quoted=$(printf ' %q' .venv/bin/flowjax train --config "$config" --workdir "$workdir" "$@")
task=$(cat <<EOF
name: flowjax-$(basename "$workdir")
num_nodes: $nodes
resources:
  accelerators: $accelerators
  use_spot: true
workdir: .
${FLOWJAX_BUCKET:+file_mounts:
  /bucket:
    source: $FLOWJAX_BUCKET
    mode: MOUNT
}setup: |
  python3 -m venv .venv && .venv/bin/pip install -q -e '.[all,cuda13]'
run: |
  several=()
  if [ "\$SKYPILOT_NUM_NODES" -gt 1 ]; then
    first=\$(echo "\$SKYPILOT_NODE_IPS" | head -n 1)
    several=(--coordinator_address "\$first:12345" --num_processes "\$SKYPILOT_NUM_NODES" --process_id "\$SKYPILOT_NODE_RANK")
  fi
  exec$quoted "\${several[@]}"
EOF
)
if [ -n "$dry" ]; then printf '%s\n' "$task"; else
  file=$(mktemp --suffix .yaml); printf '%s\n' "$task" > "$file"; exec sky jobs launch -y "$file"
fi
