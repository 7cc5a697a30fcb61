"""The metrics of a run, as a table on stderr and one line of JSON.

usage: flowjax evaluate --workdir DIR
       flowjax evaluate --workdir DIR --metrics fid,sfid,kid,precision,recall [--num N | --samples FILE.npz]
           [--labels shares|balanced|random] [--split train|test] [--inception highest|high|default]
           [the flags of flowjax sample]

Without --metrics, the metrics that fit the run's data set are computed. Densities: nll, kl (where the true density is
known), w2, mmd, npe, mode shares. Images: nll, bits_per_dim; small ones also w2, mmd.

The samples of a conditional network have classes with their shares of the training data, so that they can be compared
with the test set. --labels balanced draws equally many samples of each class, as for published values of FID, and
--labels random draws the classes with equal chances.

--metrics are of Inception features of 8-bit images: --num samples are drawn, or taken from the array `samples` of a
file that `flowjax sample` wrote, and compared with a split of the data set, whose statistics are computed once and kept
in $FLOWJAX_CACHE or ~/.cache/flowjax. FID depends on the number of samples: below 50,000 its bias is estimated.
Several processes (the flags of `flowjax train`) draw a share each; of images they find the features of it too.
--inception is the precision of that network's convolutions: default is TF32 on a GPU, and faster.

example:
  flowjax evaluate --workdir runs/g8
  flowjax evaluate --workdir runs/cifar10 --metrics fid,kid --num 50000 --solver heun --steps 18
"""

from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags

__all__ = ["run"]

_OF_IMAGES = ("num", "samples", "split", "inception")


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.parse(_define(of_images=True), argv, __doc__ or "")
    if values.metrics is None:
        values = _without_metrics(values, argv)
    elif values.samples is not None:
        for name, why in (("num", "all samples of the file are scored"), ("labels", "the samples are already drawn")):
            if values[name].present:
                raise flags.UsageError(f"--{name} and --samples cannot be used together: {why}")
    workdir = flags.run_workdir(values)

    from flowjax.cli import cache
    from flowjax.cli.common import check_labels, guide, join, open_run, own_dataset, solver
    from flowjax.data.arrays import read_npz
    from flowjax.inference import evaluation
    from flowjax.training.writers import say

    join(values)
    cache.use(values.compilation_cache)
    opened = open_run(values, workdir)
    check_labels(values, opened)
    dataset = own_dataset(opened)
    if values.metrics is None:
        result = evaluation.evaluate(opened, dataset, values.seed, solver(values), values.batch, values.labels)
    else:
        result = evaluation.evaluate_images(
            opened,
            dataset,
            flags.split_values(values.metrics) if values.metrics else [],
            num=values.num,
            split=values.split,
            samples=None if values.samples is None else read_npz(values.samples, "samples")["samples"],
            precision=values.inception,
            seed=values.seed,
            solver=solver(values),
            batch=values.batch,
            guide=guide(values),
            labels=values.labels,
        )
    for key, value in result.items():
        say(f"{key:<18}{value:>12.5g}")
    return result


def _define(of_images: bool) -> absl_flags.FlagValues:
    """All flags; or, for densities and likelihoods, with those of an ODE's solver alone."""
    values = flags.of_run()
    flags.define_plugins(values)
    metrics = "metrics of images, with commas between: fid, sfid, kid, precision, recall, or my_module:my_metric"
    absl_flags.DEFINE_string("metrics", None, metrics, flag_values=values)
    absl_flags.DEFINE_integer("num", 50_000, "samples to draw for --metrics, at least 4", flag_values=values)
    absl_flags.DEFINE_string("samples", None, "an .npz file of samples for --metrics", flag_values=values)
    flags.define_labels(values, "shares")
    absl_flags.DEFINE_enum("split", "train", ["train", "test"], "the reference of --metrics", flag_values=values)
    precisions = ["highest", "high", "default"]
    absl_flags.DEFINE_enum("inception", "highest", precisions, "precision of its convolutions", flag_values=values)
    (flags.define_sampler if of_images else flags.define_solver)(values)
    flags.define_processes(values)
    return values


def _without_metrics(values: absl_flags.FlagValues, argv: list[str]) -> absl_flags.FlagValues:
    """The flags read again without those that only samples have; UsageError if one of these was given."""
    plain = _define(of_images=False)
    for name in values:
        if values[name].present and (name in _OF_IMAGES or name not in plain):
            raise flags.UsageError(f"--{name} has a meaning only together with --metrics")
    return flags.parse(plain, argv, __doc__ or "")
