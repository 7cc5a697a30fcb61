#!/usr/bin/env bash
# The figures of experiments/throughput and experiments/scaling on this machine's GPUs, one program after the other.
#
#     scripts/benchmarks/accelerator.sh OUT [PNG_FOLDER]
#
# Writes OUT/results.jsonl, a line a figure, in the order below: what matters most comes first, and a machine that is
# taken away has told the rest. Each program has its time limit, and one that fails leaves its error in OUT/log.txt.
# PNG_FOLDER: images as data.name=folder takes them. PyTorch's half needs torch and torchcfm. Nothing else may run: two
# programs that compile together took over three times as long as one after the other.
set -u
out=${1:?usage: accelerator.sh OUT [PNG_FOLDER]} pngs=${2:-}
mkdir -p "$out"
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL=2
devices=$(python3 -c 'import jax; print(jax.local_device_count())') || exit

run() { # LIMIT COMMAND...
  local limit=$1 start=$SECONDS
  shift
  echo "$*" | tee -a "$out/log.txt"
  timeout "$limit" python3 "$here/$@" 2>> "$out/log.txt" | tee -a "$out/results.jsonl"
  echo "   rc ${PIPESTATUS[0]}, $((SECONDS - start)) s" | tee -a "$out/log.txt"
}

run 240 unet_gpu.py train --profile "$out/train"
run 300 torch_unet.py
run 180 unet_gpu.py sample
if ((devices > 1)); then
  run 300 scaling.py measure --model unet --batch 512 --set model.dropout=0.0 --mesh 2x1 1x2 --profile "$out/scaling"
  run 400 scaling.py measure --model dit_l2 --mesh 2x1 1x2
  run 400 scaling.py measure --model dit_xl2 --set model.remat=block --mesh 1x2
else
  run 300 scaling.py measure --model dit_xl2 --set model.remat=block --mesh 1x1
fi
run 180 unet_gpu.py sample --batch 500
[[ -n $pngs ]] || exit 0
run 60 stream.py --path "$pngs" --workers 0 4 12
# the wait of a real run, in stall_seconds of its records
FLOWJAX_RESIDENT_BYTES=0 timeout 240 python3 -c 'import sys; from flowjax.cli.main import main; main(sys.argv[1:])' train \
  --config cifar10_hour --config.data.name=folder --config.data.path="$pngs" --config.data.workers=12 --config.train.batch_size=512 \
  --config.train.steps=480 --config.train.warmup=1000.0 --config.train.log_every=160 --config.train.save_every=480 --config.train.keep_at='()' \
  --workdir "$out/streamed" 2>> "$out/log.txt"
cat "$out/streamed/metrics.jsonl" >> "$out/results.jsonl"
