"""Map points of the source of a trained run to data, by its ODE or its bijection.

usage: flowjax decode --workdir DIR --data CODES.npz --out FILE.npz [the flags of the ODE solver]

CODES.npz has `z` (N, *shape), as `flowjax encode` writes it, and the conditions of the network by name (labels as `y`),
in the units of the data. FILE.npz receives `samples` (N, *shape), and the conditions. Images are also drawn as a grid
into FILE.png, the first 64.

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
    absl_flags.DEFINE_string("data", None, "the .npz file with z", flag_values=values)
    absl_flags.DEFINE_string("out", None, "the .npz file to write", flag_values=values)
    flags.define_solver(values)
    flags.define_processes(values)
    flags.parse(values, argv, __doc__ or "")
    out, workdir, data = flags.out_path(values), flags.run_workdir(values), flags.require(values, "data")

    from flowjax.cli import cache
    from flowjax.cli.common import check_solved, codes, join, open_run, save_grid, save_npz, solver
    from flowjax.inference.encoding import decode

    join(values)
    cache.use(values.compilation_cache)
    chosen = solver(values)  # a bad solver is refused before anything is read
    opened = open_run(values, workdir)
    check_solved(values, opened)
    found = codes(opened, data)
    drawn = decode(opened, found.x, found.cond, chosen, values.batch, show=True)
    given = {"labels" if name == "label" else name: a for name, a in found.cond.items()}
    save_npz(out, samples=drawn.points, **given)
    save_grid(out, opened, drawn.points, found.cond.get("label"))
    return {"out": str(out), "num": len(drawn.points), "nfe": drawn.nfe}
