"""Compute exact or estimated log-likelihoods of points under a trained run.

usage: flowjax likelihood --workdir DIR [--split test | --data FILE.npz] --out FILE.npz
           [--divergence exact|hutchinson|hutch++] [--probes K] [--probe_kind rademacher|gaussian|orthogonal]

FILE.npz receives `log_prob` (N,), in nats, of the density in data space, and `standard_error` (N,), the error of each
value by the random probes of --divergence hutchinson or hutch++ (0 if it is exact, absent with a single probe). By
default the points are those of the test split, in a fixed random order, and `rows` (N,) has the row of each point in
x_test, or in x if there is no x_test; test points that were drawn from a known density are in `x`. The points of --data
FILE keep their order. That file has `x` (N, *shape) in data space, and the conditions of the network: labels are in `y`
(N,), and other conditions, (N, *shape), have the names of the run's fields (data.cond). The file that `flowjax sample`
writes, with `samples` and `labels`, can be given too. Without labels, the unconditional density is evaluated.

The first --check points are scored again with a tenth of --rtol and --atol, or twice the --steps. `difference` is the
mean absolute change in nats, and `converged` says whether it is at most --converged_within times the dimension.

Integers (pixels, counts) are dequantised with random numbers from --seed: with the exact divergence, log_prob is then
a lower bound on their log-probability, and bits_per_dim, with its standard error over the points, an upper bound on
their bits per dimension. --importance_samples K averages the density over K draws of each point, which tightens the
bound at K times the cost; published values state K, and are comparable only at equal K. An estimated divergence keeps
the mean of the bound at K = 1. At larger K, or in a sum over classes, its noise raises log_prob, which is then no
bound. --dequantisation truncated_normal is for models of a Gaussian path that were trained with
data.dequantisation=none and resolve the bins, and variational for those that have learned the noise.

--bound ddpm(1000) computes the variational bound of a chain of 1,000 levels with the discretised last step of DDPM.
Paths without noise at their last time, such as condot, take ddpm(1000, end='bin'), which ends where half of a bin is
four standard deviations of the noise. --bound vdm(20) is the bound in continuous time with 20 noise levels for each
point; it ends there too, or at the last time of the model if that is earlier. Neither takes a solver, and their three
terms are in the result. ddpm(1000, 50) evaluates 50 of the steps, at random: without bias, but with a larger standard
error.

If more than one batch is needed, finished batches are kept in FILE.npz.parts until the file is written, and the same
command continues after an interruption with bitwise equal results.

Several processes (see `flowjax train --help`) each score a part of the points, and the first one writes the file.

example:
  flowjax likelihood --workdir runs/g8 --split test --divergence exact --out ll.npz
  flowjax likelihood --workdir runs/cifar10 --num 256 --divergence hutchinson --probes 8 --out ll.npz
  flowjax likelihood --workdir runs/digits --importance_samples 20 --out ll.npz
  flowjax likelihood --workdir runs/digits --bound 'ddpm(1000)' --out bound.npz
"""

from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags

__all__ = ["run"]


_NOT_OF_BOUNDS = {
    "the bound takes no divergence": ("divergence", "probes", "probe_kind"),
    "the bound takes no solver": ("check", "converged_within", "solver", "rtol", "atol", "steps"),
    "the noise of the bound is that of the path": ("dequantisation", "importance_samples"),
}
"""Flags of log-densities that have no meaning for variational bounds, by the reason."""


def _check_bound(values: absl_flags.FlagValues) -> None:
    """Raises UsageError if a flag of log-densities is given together with --bound."""
    for why, names in _NOT_OF_BOUNDS.items():
        for name in names:
            if values[name].present:
                raise flags.UsageError(f"--{name} and --bound cannot be used together: {why}")


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.of_run()
    flags.define_plugins(values)
    absl_flags.DEFINE_enum(
        "split", "test", ["test"], "score the points of this split of the run's data set", flag_values=values
    )
    absl_flags.DEFINE_string(
        "data", None, "score the points of an .npz file, x, with conditions by name", flag_values=values
    )
    absl_flags.DEFINE_enum(
        "divergence",
        "exact",
        ["exact", "hutchinson", "hutch++"],
        "compute the divergence exactly, or estimate it by Hutchinson's method or Hutch++",
        flag_values=values,
    )
    probes = "random directions per point, by default 1 for hutchinson, 6 for hutch++; a standard error needs several"
    absl_flags.DEFINE_integer("probes", None, probes, lower_bound=1, flag_values=values)
    kinds = ["rademacher", "gaussian", "orthogonal"]
    kind = "directions of hutchinson: random signs (default), normal numbers, or 4 groups of orthogonal ones"
    absl_flags.DEFINE_enum("probe_kind", None, kinds, kind, flag_values=values)
    absl_flags.DEFINE_integer("num", 0, "score only this many points; 0 for all", lower_bound=0, flag_values=values)
    absl_flags.DEFINE_string("out", None, "the .npz file to write", flag_values=values)
    flags.define_solver(values)
    flags.define_convergence(values)
    flags.define_dequantisation(values)
    flags.define_processes(values)
    flags.parse(values, argv, __doc__ or "")
    flags.check_split(values)
    if values.bound:
        _check_bound(values)
    out = flags.out_path(values)
    workdir = flags.run_workdir(values)

    import numpy as np

    from flowjax.cli import cache
    from flowjax.cli.common import check_solved, join, open_run, points, save_npz, solver
    from flowjax.inference import scoring
    from flowjax.inference.dequantisations import described
    from flowjax.inference.divergences import say_if_no_bound
    from flowjax.inference.finished_batches import remove_finished
    from flowjax.inference.integer_bounds import integer_bound
    from flowjax.inference.prior_error import prior_kl_bound
    from flowjax.inference.standard_errors import standard_error_of_mean
    from flowjax.likelihood import divergence_of
    from flowjax.training import processes
    from flowjax.training.writers import say

    join(values)
    cache.use(values.compilation_cache)
    chosen = solver(values)  # a bad solver and a bad divergence are refused before anything is read
    try:
        divergence = divergence_of(values.divergence, values.probes, values.probe_kind)
    except ValueError as error:
        raise flags.UsageError(f"--divergence {values.divergence}: {error}") from None
    opened = open_run(values, workdir)
    check_solved(values, opened)
    found = points(opened, values.data)
    if values.num:
        found = found.first(values.num)
    finished = out.with_name(f"{out.name}.parts{processes.suffix()}")
    if values.bound:
        options: dict[str, Any] = {"show": True, "keep": finished}
        bound = integer_bound(opened, found.x, found.cond, values.bound, values.seed, values.batch, **options)
        save_npz(out, log_prob=bound.log_prob, rows=found.rows)
        processes.wait("written")
        remove_finished(finished)
        return {"out": str(out), "num": len(found.x), **bound.described(), "nfe": bound.nfe}
    say_if_no_bound(opened, found.cond, divergence, values.importance_samples)
    scored = scoring.log_prob(
        opened,
        found.x,
        found.cond,
        divergence,
        seed=values.seed,
        solver=chosen,
        batch=values.batch,
        show=True,
        check=values.check,
        converged_within=values.converged_within,
        dequantisation=values.dequantisation or "",
        importance_samples=values.importance_samples,
        keep=finished,
    )
    log_prob, errors, checked = scored.log_prob, scored.standard_error, scored.convergence
    drawn = found.x if found.rows is None and values.data is None else None  # test points of a known density
    save_npz(out, log_prob=log_prob, standard_error=errors, rows=found.rows, x=drawn)
    processes.wait("written")
    remove_finished(finished)
    n, inside = len(log_prob), log_prob[np.isfinite(log_prob)]
    mean = float(log_prob.mean())
    if len(inside) < n:
        say(f"likelihood: {1 - len(inside) / n:.2%} of the points lie outside the flow's support: -inf")
    return {
        "out": str(out),
        "num": n,
        "mean": mean,
        "stderr": standard_error_of_mean(log_prob),
        **described(opened, found.x, log_prob, divergence, values.dequantisation or "", values.importance_samples),
        "nfe": scored.nfe,
        "standard_error": None if errors is None else float(errors.mean()),
        "converged": None if checked is None else checked.converged,
        "difference": None if checked is None else checked.difference,
        "prior_kl": prior_kl_bound(opened, found.x),
    }
