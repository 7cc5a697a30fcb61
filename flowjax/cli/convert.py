"""Convert a published PyTorch checkpoint into a file of weights for flowjax, without PyTorch.

usage: flowjax convert --from torchcfm|dit|sit --weights FILE.pt --out FILE.safetensors [--no-ema]
           [--heads N | --head_width N] [--shape H,W,C] [--classes N] [--config.model.KEY=VALUE ...]
           [--dtype float32|bfloat16]

By default the network is that of torchcfm for CIFAR-10, DiT-XL/2 or SiT-XL/2 (256 x 256); the other flags describe
another network. No code in the file is run. `flowjax.interop.open_weights(OUT)` opens the result like a run.

A state dict does not contain the number of attention heads, so the networks of torchcfm need one of two flags:
--head_width W for a network that was trained with num_head_channels=W (64 in the published CIFAR-10 networks), or
--heads N for one that was trained with num_heads=N and num_head_channels=-1 (the default of UNetModelWrapper, with
N = 1).

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
    absl_flags.DEFINE_enum(
        "from", None, ["torchcfm", "dit", "sit"], "project that the checkpoint comes from", flag_values=values
    )
    absl_flags.DEFINE_string("weights", None, "the .pt or .safetensors file to read", flag_values=values)
    absl_flags.DEFINE_string("out", None, f"the {SUFFIX} file to write", flag_values=values)
    absl_flags.DEFINE_bool("ema", True, "use the moving average, if the file has both", flag_values=values)
    absl_flags.DEFINE_list("shape", None, "shape of one image or latent, such as 64,64,4", flag_values=values)
    absl_flags.DEFINE_integer("classes", None, "number of classes", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_integer(
        "heads", None, "number of attention heads in every layer (model.heads)", lower_bound=1, flag_values=values
    )
    absl_flags.DEFINE_integer(
        "head_width",
        None,
        "channels of each attention head of torchcfm's networks (model.head_width)",
        lower_bound=1,
        flag_values=values,
    )
    absl_flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "type of the numbers in the file", flag_values=values
    )
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
    """Returns ("model.width", 384) for --config.model.width=384. A value that is not a literal stays a string."""
    key, equals, value = argument.removeprefix("--config.").partition("=")
    if not equals:
        raise flags.UsageError(f"{argument} needs a value: {argument}=VALUE")
    if value in ("true", "false"):
        return key, value == "true"
    return key, literal(value)


def _shape(parts: list[str]) -> tuple[int, ...]:
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise flags.UsageError(f"--shape must be height, width and channels, such as 64,64,4, not {','.join(parts)!r}")
    return tuple(int(part) for part in parts)
