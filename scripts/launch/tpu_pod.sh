#!/usr/bin/env bash
# A run on a TPU VM slice that exists: the same command on every worker, which find each other. Prints with --dry_run.
#
#   scripts/launch/tpu_pod.sh [--dry_run] NAME ZONE SOURCE CONFIG WORKDIR [--config.KEY=VALUE ...]
#   scripts/launch/tpu_pod.sh pod us-central2-b 'git+https://example.org/me/flowjax' cifar10 /mnt/disk/runs/cifar10
#
# SOURCE is what pip installs; WORKDIR a path that all workers see (a mounted bucket or Filestore). The same command resumes.
set -euo pipefail
dry=; rest=()
for word in "$@"; do if [ "$word" = --dry_run ]; then dry=1; else rest+=("$word"); fi; done  # wherever it stands
set -- "${rest[@]+"${rest[@]}"}"
[ $# -ge 5 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
name=$1 zone=$2 source=$3 config=$4 workdir=$5; shift 5
quoted=$(printf ' %q' env FLOWJAX_DISTRIBUTED=1 .flowjax/bin/flowjax train --config "$config" --workdir "$workdir" "$@")
package=$(printf '%q' "flowjax-research[all,tpu] @ $source")
work="python3 -m venv .flowjax && .flowjax/bin/pip install -q $package &&$quoted"
command=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$work")
if [ -n "$dry" ]; then printf '%q ' "${command[@]}"; echo; else exec "${command[@]}"; fi
