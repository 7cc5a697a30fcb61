#!/usr/bin/env bash
# The figures of experiments/throughput and experiments/scaling on this machine's GPUs, one program after the other.
#
#     scripts/benchmarks/accelerator.sh OUT [PNG_FOLDER]
#
# Writes OUT/results.jsonl, a line a figure, in the order below: what matters most comes first. Each program has its time
# limit in seconds, and one that fails leaves its error in OUT/log.txt. PNG_FOLDER: images as data.name=folder takes
# them. PyTorch's half needs torch and torchcfm. Nothing else may run beside it.
set -u
out=${1:?usage: accelerator.sh OUT [PNG_FOLDER]} pngs=${2:-}
mkdir -p "$out"
[[ -z $(ls -A "$out") ]] || { echo "$out is not empty: name another folder" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL=2
devices=$(python3 -c 'import jax; print(jax.local_device_count())') || exit

flowjax='import sys; from flowjax.cli.main import main; sys.exit(main(sys.argv[1:]))'

run() { # LIMIT SCRIPT|-c ARGUMENTS...
  local limit=$1 start=$SECONDS script=$2
  shift 2
  [[ $script == -c ]] || script=$here/$script
  echo "$script $*" | tee -a "$out/log.txt"
  timeout "$limit" python3 "$script" "$@" 2>> "$out/log.txt" | tee -a "$out/results.jsonl"
  echo "   rc ${PIPESTATUS[0]}, $((SECONDS - start)) s" | tee -a "$out/log.txt"
}

run 240 unet_gpu.py train --profile "$out/train"
run 300 torch_unet.py
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false" # sums as part of cuBLAS's products
run 180 unet_gpu.py sample --profile "$out/sample"
run 180 unet_gpu.py sample --batch 500
export XLA_FLAGS="${XLA_FLAGS% *}"
if ((devices > 1)); then
  run 600 scaling.py measure --model unet --batch 512 --set model.dropout=0.0 --mesh 2x1 1x2 --profile "$out/scaling"
  run 600 scaling.py measure --model dit_l2 --mesh 2x1 1x2
  run 600 scaling.py measure --model dit_xl2 --set model.remat=block --mesh 1x2
else
  run 300 scaling.py measure --model dit_xl2 --set model.remat=block --mesh 1x1
fi
[[ -n $pngs ]] || exit 0
run 60 stream.py --path "$pngs" --workers 0 4 12
export FLOWJAX_RESIDENT_BYTES=0 # a real run's wait for them is in stall_seconds of its records
run 300 -c "$flowjax" train --config cifar10_hour --config.data.name=folder --config.data.path="$pngs" \
  --config.data.workers=12 --config.train.batch_size=512 --config.train.steps=480 --config.train.warmup=1000.0 \
  --config.train.log_every=160 --config.train.save_every=480 --config.train.keep_at='()' --workdir "$out/streamed"
cat "$out/streamed/metrics.jsonl" >> "$out/results.jsonl"
