"""Turn a published PyTorch checkpoint into weights of ours, without PyTorch.

usage: flowjax convert --from torchcfm|dit|sit --weights FILE.pt --out FILE.safetensors [--no-ema]
           [--heads N | --head_width N] [--shape H,W,C] [--classes N] [--config.model.KEY=VALUE ...]
           [--dtype float32|bfloat16]

Without more, the network is torchcfm's for CIFAR-10, DiT-XL/2 or SiT-XL/2 (256 x 256). Nothing in the file is run.
`flowjax.interop.open_weights(OUT)` is then a run like any other.

A state dict does not hold its number of attention heads, so torchcfm's networks need one of two flags: --head_width W
if they were trained with num_head_channels=W (64 in the published CIFAR-10 networks), or --heads N if they were trained
with num_heads=N and num_head_channels=-1 (the default of UNetModelWrapper, with N = 1).

example:
  flowjax convert --from torchcfm --weights otcfm_cifar10.pt --head_width 64 --out otcfm.safetensors
  flowjax convert --from dit --weights DiT-XL-2-256x256.pt --out dit.safetensors
  flowjax convert --from sit --weights mine.pt --config.model.depth=12 --config.model.width=384 --heads 6
  --out sit.safetensors
"""

from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags
from flowjax.cli.export import SUFFIX, weights_path
from flowjax.config import literal

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.new()
    absl_flags.DEFINE_enum("from", None, ["torchcfm", "dit", "sit"], "whose network it is", flag_values=values)
    absl_flags.DEFINE_string("weights", None, "the .pt or .safetensors file to read", flag_values=values)
    absl_flags.DEFINE_string("out", None, f"the {SUFFIX} file to write", flag_values=values)
    absl_flags.DEFINE_bool("ema", True, "use the moving average, where the file holds both", flag_values=values)
    absl_flags.DEFINE_list("shape", None, "of one image or latent: 64,64,4", flag_values=values)
    absl_flags.DEFINE_integer("classes", None, "number of labels", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_integer(
        "heads", None, "number of attention heads in every layer (model.heads)", lower_bound=1, flag_values=values
    )
    absl_flags.DEFINE_integer(
        "head_width",
        None,
        "channels of each attention head, of torchcfm's networks (model.head_width)",
        lower_bound=1,
        flag_values=values,
    )
    absl_flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the file", flag_values=values)
    overrides = [a for a in argv if a.startswith("--config.")]
    flags.parse(values, [a for a in argv if a not in overrides], __doc__ or "")
    out, project, weights = weights_path(values), flags.require(values, "from"), flags.require(values, "weights")
    shape = None if values.shape is None else _shape(values.shape)

    from flowjax.interop import save_weights
    from flowjax.interop.published import convert

    changed = dict(_override(a) for a in overrides)
    changed |= {f"model.{k}": values[k].value for k in ("heads", "head_width") if values[k].value is not None}
    converted = convert(project, weights, changed, shape, values.classes, values.ema)
    return {"out": str(out), **save_weights(out, converted, values.dtype)}


def _override(argument: str) -> tuple[str, Any]:
    """--config.model.width=384 as ("model.width", 384); a value that is no literal is a name."""
    key, equals, value = argument.removeprefix("--config.").partition("=")
    if not equals:
        raise flags.UsageError(f"{argument} needs a value: {argument}=VALUE")
    if value in ("true", "false"):
        return key, value == "true"
    return key, literal(value)


def _shape(parts: list[str]) -> tuple[int, ...]:
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise flags.UsageError(f"--shape is height, width and channels, like 64,64,4, not {','.join(parts)!r}")
    return tuple(int(part) for part in parts)
