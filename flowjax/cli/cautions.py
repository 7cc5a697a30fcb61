"""Warnings about settings that are valid, but probably a mistake."""

from flowjax.config import Config

__all__ = ["cautions"]


def cautions(config: Config) -> list[str]:
    """Returns a line for each setting of a resolved config that is probably a mistake."""
    from flowjax.data.requests import field_requests  # this imports JAX, which --help does not need

    train, found = config.train, []
    if train.lr < 1e-9:
        found.append(f"train.lr = {train.lr:g} is so small that parameters of order one do not change in float32")
    if train.lr > 10:
        found.append(f"train.lr = {train.lr:g} is so large that training will probably diverge")
    if 0 < train.clip < 1e-6:
        found.append(f"train.clip = {train.clip:g} makes all gradients too small to train; 0 disables clipping")
    if train.optimizer != "adam" and train.lr * train.weight_decay >= 1:
        found.append(
            f"train.lr times train.weight_decay is {train.lr * train.weight_decay:g}: each step shrinks the parameters "
            "to zero or beyond"
        )
    if train.optimizer == "adam" and train.weight_decay:
        found.append(
            f"train.weight_decay = {train.weight_decay:g} has no effect on train.optimizer 'adam'; use 'adamw'"
        )
    for request in field_requests(config.data.cond):
        if (config.data.cond_dropout if request.dropout is None else request.dropout) == 1:
            found.append(
                f"data.cond_dropout = 1 hides {request.name!r} from the network: it is trained without this condition"
            )
    if config.ema.half_life and config.ema.half_life < train.batch_size / 10:
        found.append(
            f"ema.half_life = {config.ema.half_life:g} samples is much less than one batch of {train.batch_size}: the "
            "moving average equals the parameters; 0 disables it"
        )
    if late := [step for step in train.keep_at if step > train.steps]:
        found.append(f"train.keep_at has steps after train.steps = {train.steps}: {', '.join(map(str, late[:5]))}")
    if train.log_every > train.steps:
        found.append(
            f"train.log_every = {train.log_every} is above train.steps = {train.steps}: only the last step is logged"
        )
    if train.batch_size == 1 and "coupling" in config and config.coupling.name != "independent":
        found.append(f"coupling.name {config.coupling.name!r} pairs the rows of a batch, but train.batch_size is 1")
    return found
