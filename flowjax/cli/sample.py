"""Draw samples from a trained run.

usage: flowjax sample --workdir DIR --num N --out FILE.npz [--label K]
           [--solver NAME] [--rtol R --atol A | --steps N [--grid NAME]] [--eta E | --churn S | --g G] [--schedule NAME]
           [--guidance cfg --scale S [--interval A,B] [--rescale R] | --guidance auto --weak DIR --scale S]

Writes the array `samples` (N, *shape), and `labels` (N,) for a conditional network. Images come out as uint8, with a
grid of the first 64 in a .png beside. Sample i depends on --seed and on i alone.

example:
  flowjax sample --workdir runs/g8 --num 50000 --seed 0 --solver dopri5 --out samples.npz
  flowjax sample --workdir runs/digits --num 64 --solver unipc --steps 16 --guidance cfg --scale 2 --label 7 --out
  seven.npz
"""

import time
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.new("sample")
    absl_flags.DEFINE_integer("num", 1000, "number of samples", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_integer("label", None, "one class for all samples", lower_bound=0, flag_values=values)
    absl_flags.DEFINE_string("out", None, "the .npz file to write", flag_values=values)
    flags.define_sampler(values)
    flags.parse(values, argv, __doc__ or "")
    out = flags.out_path(values)
    workdir = flags.require(values, "workdir")

    from flowjax import plots, sampling
    from flowjax.cli.common import guide, open_run, save_npz, solver

    opened = open_run(values, workdir)
    label, spec = values.label, opened.spec
    if label is not None and not opened.config.model.conditional:
        raise flags.UsageError(f"--label: the network of {workdir} is not conditional")
    if label is not None and label >= spec.num_classes:
        raise flags.UsageError(f"--label {label}: the classes are 0 to {spec.num_classes - 1}")
    start = time.perf_counter()
    drawn = sampling.sample(opened, values.num, values.seed, solver(values), label, values.batch, True, guide(values))
    seconds = time.perf_counter() - start
    save_npz(out, samples=drawn.samples, labels=drawn.labels)
    if spec.is_image:
        plots.image_grid(Path(out).with_suffix(".png"), drawn.samples[:64], spec.levels)
    return {"out": str(out), "num": len(drawn.samples), "nfe": drawn.nfe, "seconds": round(seconds, 3)}
