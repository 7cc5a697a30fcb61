"""Compute the metrics of a run, as a table on stderr and one line of JSON.

usage: flowjax evaluate --workdir DIR
       flowjax evaluate --workdir DIR --metrics fid,sfid,kid,precision,recall [--num N | --samples FILE.npz]
           [--labels shares|balanced|random] [--split train|test] [--inception highest|high|default]
           [the flags of flowjax sample]

Without --metrics, the metrics that fit the run's data set are computed. For densities these are nll, kl (if the true
density is known), w2, mmd, npe, straightness, transport_cost, turning and mode shares; for images nll and bits_per_dim,
and for small images also w2 and mmd. For vectors, tables and series without a known density they are nll, w2, mmd, npe
and distances of the marginals, errors of the correlations, the energy distance and the accuracy c2st of a classifier
that tells samples from test rows; names that end in _true are the same between two halves of the test rows. Distances
are in the unit of the data, or, where each feature has a scale of its own, in standard deviations of the features. For
sets with a mask they are distances between the elements of samples, which are full sets, and those of test sets that
exist.

Log-likelihoods of a density that can be drawn are those of 20,000 new draws, where `flowjax likelihood` takes its
10,000 test points. Of other data both commands take the test rows, this one the first 256 of large images.

--solver and --steps are those of the samples. Log-likelihoods take adaptive steps with --rtol and --atol, because a few
steps can give good samples and wrong densities; `flowjax likelihood` computes them with any number of steps. The
first --check points are scored again with a tenth of the tolerances: nll_difference is the mean absolute change in
nats, and nll_converged says whether it is at most --converged_within times the dimension.

Bits per dimension of integers are a bound for --dequantisation and --importance_samples, as in `flowjax likelihood`,
and the result has both beside them. --bound ddpm(1000) or vdm(20) adds a variational bound, with its three terms; for
methods that minimise one it is there without the flag, and --bound= leaves it out.

The classes of a conditional network's samples are drawn with their shares of the training data, so that samples can be
compared with the test set. --labels balanced draws equally many samples of each class, as is usual for published FIDs,
and --labels random draws the classes with equal probability.

--metrics compares Inception features of 8-bit images. --num samples are drawn, or read from the array `samples` of a
file that `flowjax sample` has written, and compared with a split of the data set. The statistics of the split are
computed once, and kept in $FLOWJAX_CACHE or ~/.cache/flowjax. FID depends on the number of samples; with fewer than
50,000, its bias is estimated. --inception is the precision of that network's convolutions: default is TF32 on a GPU,
which is faster. A metric of your own is a function of the features of the samples and of the data, my_module:my_metric.

Of a run on simulations (data.name=simulator), the default metrics are nll, the negative mean log-density of the true
parameters of held-out simulations, and whether the posteriors are calibrated: ranks of the parameters among 100
posterior samples of each of 500 simulations, and the expected coverage of credible regions (tarp), with simultaneous
95% bands. Its --metrics are calibration, local_c2st (a classifier test at the first held-out observation), and for the
tasks of the benchmark c2st, the mean accuracy of classifiers that tell --num posterior samples (by default 10,000) of
each of ten observations from reference posteriors, which are read from sbibm/TASK.npz in the same folder as above.

--at_steps 1,2,4,8 also compares samples of each of these numbers of steps with the data, all from the same source
samples: w2_squared_N and nfe_N, the evaluations of a sample, for N steps, or with --metrics their values as fid_N. The
figure is WORKDIR/plots/steps.png. It shows how few steps are enough for a solver or a method. With --solver and without
--steps, all other metrics are those of the largest number.

The result is also kept in WORKDIR/metrics, where `flowjax report`, `compare` and `sweep` find it. It is not kept with
--samples, as the samples of a file may be those of another run.

Several processes (see `flowjax train --help`) each draw a part of the samples, and compute the features of that part.

example:
  flowjax evaluate --workdir runs/g8
  flowjax evaluate --workdir runs/g8 --solver euler --at_steps 1,2,4,8,100
  flowjax evaluate --workdir runs/cifar10 --metrics fid,kid --num 50000 --solver heun --steps 18
  flowjax evaluate --workdir runs/two_moons --metrics local_c2st,c2st --num 1000
"""

from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from flowjax.arguments import separate
from flowjax.cli import flags

if TYPE_CHECKING:
    from flowjax.inference import Run

__all__ = ["run"]

_OF_IMAGES = ("num", "samples", "split", "inception")

_OF_DENSITIES = ("check", "converged_within", "dequantisation", "importance_samples", "bound")

_NOT_OF_POSTERIORS = (
    "at_steps",
    *("samples", "split", "inception", "labels"),
    *("guidance", "scale", "interval", "rescale", "guided", "weak", "weak_checkpoint"),
)
"""Flags of image metrics that those of posteriors do not have."""

_NO_SETTINGS = (
    *("workdir", "checkpoint", "batch", "compilation_cache", "plugins", "coordinator_address", "num_processes"),
    *("process_id", "heartbeat_timeout", "initialization_timeout"),
)
"""Flags that do not change the metrics of a checkpoint, whose step is kept with them."""


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.parse(_define(of_images=True), argv, __doc__ or "")
    if values.metrics is None:
        values = _without_metrics(values, argv)
    elif given := next((name for name in _OF_DENSITIES if values[name].present), None):
        raise flags.UsageError(f"--{given} is for log-likelihoods, and these are computed without --metrics")
    elif values.samples is not None:
        for name, why in (("num", "all samples of the file are scored"), ("labels", "the samples are already drawn")):
            if values[name].present:
                raise flags.UsageError(f"--{name} and --samples cannot be used together: {why}")
        if values.at_steps:
            raise flags.UsageError("--at_steps draws samples, and --samples are drawn already: leave one out")
    at_steps = _numbers_of_steps(values.at_steps)
    workdir = flags.run_workdir(values)

    from flowjax.cli import cache
    from flowjax.cli.common import check_labels, check_solved, guide, join, open_run, solver
    from flowjax.data.arrays import read_npz
    from flowjax.inference import evaluation
    from flowjax.inference.calibration import evaluate_posteriors, is_simulated
    from flowjax.inference.data_of_run import dataset_of
    from flowjax.inference.kept_metrics import keep_metrics
    from flowjax.training.processes import is_primary
    from flowjax.training.writers import say

    join(values)
    cache.use(values.compilation_cache)
    chosen = solver(values, sampler=True, steps=max(at_steps, default=None))  # refused before anything is read
    opened = open_run(values, workdir)
    check_labels(values, opened)
    check_solved(values, opened, samples=True)
    dataset = dataset_of(opened)
    if values.metrics is not None and is_simulated(opened):
        for name in _NOT_OF_POSTERIORS:
            if values[name].present:
                raise flags.UsageError(f"--{name} has no meaning for the metrics of a run on simulations")
        num = values.num if values["num"].present else None
        names = separate(values.metrics) if values.metrics else [""]
        result = evaluate_posteriors(
            opened, dataset, names, num=num, seed=values.seed, solver=chosen, batch=values.batch
        )
    elif values.metrics is None:
        result = evaluation.evaluate(
            opened,
            dataset,
            values.seed,
            chosen,
            values.batch,
            values.labels,
            at_steps,
            check=values.check,
            converged_within=values.converged_within,
            dequantisation=values.dequantisation or "",
            importance_samples=values.importance_samples,
            bound=values.bound,
        )
    else:
        result = evaluation.evaluate_images(
            opened,
            dataset,
            separate(values.metrics) if values.metrics else [],
            num=values.num,
            split=values.split,
            samples=None if values.samples is None else read_npz(values.samples, "samples")["samples"],
            precision=values.inception,
            seed=values.seed,
            solver=chosen,
            batch=values.batch,
            guide=guide(values),
            labels=values.labels,
            at_steps=at_steps,
        )
    width = max(18, *(len(key) + 2 for key in result)) if result else 18
    for key, value in result.items():
        shown = ("no", "yes")[value] if isinstance(value, bool) else value
        say(f"{key:<{width}}{shown:>12}" if isinstance(shown, str) else f"{key:<{width}}{shown:>12.5g}")
    if is_primary() and values.samples is None:
        keep_metrics(opened, flags.settings(values, _NO_SETTINGS), result)
        if at_steps:
            _draw_steps(opened, result, at_steps)
    return result


def _numbers_of_steps(given: list[str] | None) -> list[int]:
    """The numbers of --at_steps in ascending order; none if the flag is not given."""
    if any(not text.strip().isdecimal() or int(text) < 1 for text in given or []):
        raise flags.UsageError(
            f"--at_steps must be whole numbers above 0, such as 1,2,4,8, not {','.join(given or [])}"
        )
    return sorted({int(text) for text in given or []})


def _draw_steps(opened: "Run", result: dict[str, Any], at_steps: list[int]) -> None:
    """Writes plots/steps.png, or says why it cannot; the metrics are computed and kept already."""
    from flowjax import plots
    from flowjax.extras import MissingPackage
    from flowjax.inference.steps_figure import steps_figure
    from flowjax.training.writers import say

    try:
        if (figure := steps_figure(result, at_steps)) is None:
            say("evaluate: no figure is drawn, as none of the metrics is a distance")
        else:
            plots.save(figure, opened.workdir / "plots" / "steps.png")
    except (MissingPackage, OSError) as error:
        say(f"evaluate: no figure is drawn: {error}")


def _define(of_images: bool) -> absl_flags.FlagValues:
    """Defines the flags: with those of sampling for image metrics, and otherwise only with those of an ODE solver."""
    values = flags.of_run()
    flags.define_plugins(values)
    metrics = "metrics of images, with commas between: fid, sfid, kid, precision, recall, or my_module:my_metric"
    absl_flags.DEFINE_string("metrics", None, metrics, flag_values=values)
    absl_flags.DEFINE_integer("num", 50_000, "number of samples to draw for --metrics, at least 4", flag_values=values)
    absl_flags.DEFINE_string(
        "samples", None, "an .npz file with samples for --metrics, instead of drawing them", flag_values=values
    )
    flags.define_labels(values, "shares")
    absl_flags.DEFINE_enum(
        "split", "train", ["train", "test"], "split of the data set that --metrics compares with", flag_values=values
    )
    at_steps = "also compare samples of each of these numbers of steps with the data, such as 1,2,4,8"
    absl_flags.DEFINE_list("at_steps", None, at_steps, flag_values=values)
    precisions = ["highest", "high", "default"]
    absl_flags.DEFINE_enum(
        "inception", "highest", precisions, "precision of the Inception network's convolutions", flag_values=values
    )
    (flags.define_sampler if of_images else flags.define_solver)(values)
    flags.define_dequantisation(values)
    values["solver"].help = flags.SAMPLER
    flags.define_convergence(values)
    flags.define_processes(values)
    return values


def _without_metrics(values: absl_flags.FlagValues, argv: list[str]) -> absl_flags.FlagValues:
    """Parses the arguments again without the flags of image metrics, or raises UsageError if one of these was given."""
    plain = _define(of_images=False)
    for name in values:
        if values[name].present and (name in _OF_IMAGES or name not in plain):
            raise flags.UsageError(f"--{name} has a meaning only together with --metrics")
    return flags.parse(plain, argv, __doc__ or "")
