"""Training that starts from the parameters of a trained network.

The parameters of a method contain those of its network one or more times: alone, beside a learned profile of the loss,
or once for each of several networks of the same structure. `network_of` finds them, and `with_network` replaces all of
them.
"""

from collections.abc import Callable
from typing import Any

import jax

from flowjax.errors import ConfigError
from flowjax.methods.base import Method
from flowjax.trees import path_name
from flowjax.typing import Params

__all__ = ["check_start", "network_of", "with_network"]

_SECOND_TIME = "difference"
"""The first letters of the layers of a second time, which a network with one time does not have. The last of them is
initialised to zero, so that before the first step the network returns the outputs of the trained network."""


def network_of(method: Method, params: Params) -> Params:
    """The parameters of the method's network, without any other parameters of the method.

    Of several networks with the same structure it is the one with the key "network", or the first if none has this key.
    """
    is_network = _is_network(method)
    parts = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_network)
    found = {path_name(path): part for path, part in parts if is_network(part)}
    return found.get("network", next(iter(found.values())))


def with_network(method: Method, params: Params, start: Params) -> Params:
    """Replaces the parameters of the method's network by those of a trained network.

    Args:
        method: whose parameters are replaced.
        params: all its parameters.
        start: of a trained network, which `check_start` has accepted.
    """
    is_network = _is_network(method)
    replace = lambda part: _merged(part, start) if is_network(part) else part
    new = lambda part: jax.tree.map(replace, part, is_leaf=is_network)
    if (parts := getattr(method, "starts", None)) is None:
        return new(params)
    return {name: new(part) if name in parts else part for name, part in params.items()}


def _is_network(method: Method) -> Callable[[Any], bool]:
    structure = jax.tree.structure(_abstract(method))
    return lambda part: jax.tree.structure(part) == structure


def _abstract(method: Method) -> Params:
    network: Any = method.network
    return jax.eval_shape(lambda: network.init(jax.random.key(0))).params


def _by_name(params: Params) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _merged(part: Params, start: Params) -> Params:
    known = _by_name(start)
    return jax.tree_util.tree_map_with_path(lambda path, old: known.get(path_name(path), old), part)


def check_start(method: Method, start: Params, what: str) -> None:
    """Checks that a method can start from the parameters of a trained network.

    Args:
        method: the method.
        start: the parameters of the trained network.
        what: the words for it in messages, such as "train.start_from runs/a".

    Raises:
        ConfigError: if a parameter of one network is missing in the other or has another shape; the layers of a second
            time may be missing in the trained network.
    """
    now, then = _by_name(_abstract(method)), _by_name(start)
    missing = [name for name in now if name not in then and not name.startswith(_SECOND_TIME)]
    if other := [*missing, *(name for name in then if name not in now)]:
        where = "this config" if other[0] in now else "that run"
        raise ConfigError(
            f"{what} is a run of another network: only the network of {where} has the parameter {other[0]}"
        )
    for name, leaf in then.items():
        if leaf.shape != now[name].shape:
            raise ConfigError(
                f"{what} is a run of another network: the parameter {name} has the shape {tuple(leaf.shape)} there and "
                f"{tuple(now[name].shape)} here"
            )
