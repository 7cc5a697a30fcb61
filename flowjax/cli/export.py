"""Write the weights, the config and the data description of a run into one safetensors file.

usage: flowjax export --workdir DIR --out FILE.safetensors [--no-ema] [--checkpoint STEP] [--dtype float32|bfloat16]

Parameters are named by their paths in the network. `flowjax.interop.open_weights(FILE)` opens the file like a run,
without the workdir.

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
    absl_flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "type of the numbers in the file", flag_values=values
    )
    absl_flags.DEFINE_string("out", None, f"the {SUFFIX} file to write", flag_values=values)
    flags.parse(values, argv, __doc__ or "")
    out = weights_path(values)
    workdir = flags.run_workdir(values)
    plugins = flags.plugins(values)

    from flowjax.interop import export_run

    return {
        "out": str(out),
        **export_run(workdir, out, values.ema, values.checkpoint, values.dtype, plugins, values.width),
    }


def weights_path(values: absl_flags.FlagValues) -> Path:
    """Returns --out, or raises UsageError unless it ends in .safetensors."""
    out = Path(flags.require(values, "out"))
    if out.suffix != SUFFIX:
        raise flags.UsageError(f"--out must end in {SUFFIX}, not {out.name!r}")
    return out
