"""Map data to the source of a trained run: the points from which its ODE reaches them.

usage: flowjax encode --workdir DIR [--split test | --data FILE.npz] --out CODES.npz [the flags of the ODE solver]

CODES.npz receives `z` (N, *shape), points of the source, and the conditions of the data by name (labels as `y`), so
that `flowjax decode --data CODES.npz` gives back the data, up to the tolerances of the solver. With other conditions in
that file, what they do not explain stays the same. By default the points are those of the test split, and `rows` has
their rows; see `flowjax likelihood --help` for the arrays of --data FILE. Integers are dequantised with --seed. Runs
with a velocity (flows, diffusion models) and normalizing flows can encode.

example:
  flowjax encode --workdir runs/digits --num 64 --out codes.npz
  flowjax decode --workdir runs/digits --data codes.npz --out again.npz
"""

from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.of_run()
    flags.define_plugins(values)
    absl_flags.DEFINE_enum(
        "split", "test", ["test"], "encode the points of this split of the run's data set", flag_values=values
    )
    absl_flags.DEFINE_string("data", None, "encode the points x of an .npz file", flag_values=values)
    absl_flags.DEFINE_integer("num", 0, "encode only this many points; 0 for all", lower_bound=0, flag_values=values)
    absl_flags.DEFINE_string("out", None, "the .npz file to write", flag_values=values)
    flags.define_solver(values)
    flags.define_processes(values)
    flags.parse(values, argv, __doc__ or "")
    flags.check_split(values)
    out, workdir = flags.out_path(values), flags.run_workdir(values)

    from flowjax.cli import cache
    from flowjax.cli.common import check_solved, join, open_run, points, save_npz, solver
    from flowjax.inference.encoding import encode

    join(values)
    cache.use(values.compilation_cache)
    chosen = solver(values)  # a bad solver is refused before anything is read
    opened = open_run(values, workdir)
    check_solved(values, opened)
    found = points(opened, values.data)
    if values.num:
        found = found.first(values.num)
    coded = encode(opened, found.x, found.cond, values.seed, chosen, values.batch, show=True)
    given = {"y" if name == "label" else name: a for name, a in found.cond.items()}
    save_npz(out, z=coded.points, rows=found.rows, **given)
    return {"out": str(out), "num": len(coded.points), "nfe": coded.nfe}
