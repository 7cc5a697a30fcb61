"""Write a run's weights, its config and its data spec into one safetensors file.

usage: flowjax export --workdir DIR --out FILE.safetensors [--no-ema] [--checkpoint STEP] [--dtype float32|bfloat16]

Parameters stand under their paths; `flowjax.interop.open_weights(FILE)` is the run again, without its workdir.

example:
  flowjax export --workdir runs/digits --out digits.safetensors
"""

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags

__all__ = ["SUFFIX", "run", "weights_path"]

SUFFIX = ".safetensors"


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.of_run(compiles=False)
    flags.define_plugins(values)
    absl_flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the file", flag_values=values)
    absl_flags.DEFINE_string("out", None, f"the {SUFFIX} file to write", flag_values=values)
    flags.parse(values, argv, __doc__ or "")
    out = weights_path(values)
    workdir = flags.run_workdir(values)
    plugins = flags.plugins(values)

    from flowjax.interop import export_run

    return {"out": str(out), **export_run(workdir, out, values.ema, values.checkpoint, values.dtype, plugins)}


def weights_path(values: absl_flags.FlagValues) -> Path:
    """--out, told early if it cannot be meant."""
    out = Path(flags.require(values, "out"))
    if out.suffix != SUFFIX:
        raise flags.UsageError(f"--out must end in {SUFFIX}, not {out.name!r}")
    return out
