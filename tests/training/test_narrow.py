"""The parameters that networks declare to cast before use: programs cast them, and an earlier cast is equivalent."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.conditions import Field
from flowjax.config import defaults, resolve
from flowjax.data import DataSpec
from flowjax.data.affine import image_scale
from flowjax.methods import Context, Network
from flowjax.models.functional import Traits, Variables, functional
from flowjax.names import MODELS
from flowjax.training.state import init_state
from flowjax.trees import path_name
from flowjax.typing import Params, PyTree

NARROW = jnp.dtype(jnp.bfloat16)

_MOVES = {"reshape", "squeeze", "slice", "split", "transpose", "rev"}
"""Operations that only move numbers, each to at most one place. They commute with a cast, and their gradients add no
numbers in the narrower type."""


def types_in_use(f: Callable[..., Any], params: Params, *arguments: Any) -> PyTree:
    """The type in which f(params, *arguments) uses each parameter: its type, or that of a narrowing cast before use.

    Args:
        f: the function, which is traced and not run.
        params, arguments: arrays, or their shapes.
    """
    closed = jax.make_jaxpr(f)(params, *arguments)
    leaves, tree = jax.tree.flatten(params)
    found = [list(_seen(closed.jaxpr, var)) for var in closed.jaxpr.invars[: len(leaves)]]
    return tree.unflatten(_choose(leaf.dtype, types) for leaf, types in zip(leaves, found, strict=True))


def _choose(own: Any, seen: list[Any]) -> Any:
    """The type of the cast if it is the only use. Gradients of several uses are added in the wider type."""
    if len(seen) != 1 or seen[0] is None:
        return own
    floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (own, seen[0]))
    return seen[0] if floats and jnp.dtype(seen[0]).itemsize < jnp.dtype(own).itemsize else own


def _seen(jaxpr: Any, var: Any) -> Iterator[Any]:
    """The type to which each use of a variable casts it; None for a use that is not a cast."""
    if any(out is var for out in jaxpr.outvars):
        yield None
    for eqn in jaxpr.eqns:
        for i, used in enumerate(eqn.invars):
            if used is not var:
                continue
            name, inner = eqn.primitive.name, _body(eqn)
            if name == "convert_element_type":
                yield eqn.params["new_dtype"]
            elif name in _MOVES and i == 0:
                for out in eqn.outvars:
                    yield from _seen(jaxpr, out)
            elif inner is not None:
                yield from _seen(inner, inner.invars[i])
            else:
                yield None


def _body(eqn: Any) -> Any:
    """The jaxpr of an equation that runs a single jaxpr once, such as a call or a rematerialised block."""
    opened = [value.jaxpr if isinstance(value, core.ClosedJaxpr) else value for value in eqn.params.values()]
    found = [value for value in opened if isinstance(value, core.Jaxpr) and len(value.invars) == len(eqn.invars)]
    return found[0] if len(found) == 1 and eqn.primitive.name not in ("while", "scan") else None


def uses(p, x):
    """Uses each parameter in a different way."""
    h = x.astype(NARROW) @ p["cast"].astype(NARROW)
    h = h @ p["moved"].T[1:].reshape(2, -1)[:, :2].astype(NARROW)
    h = jax.checkpoint(lambda w, h: jnp.tanh(h @ w.astype(NARROW)))(p["inside"], h)
    h, _ = jax.lax.scan(lambda h, _: (h @ p["looped"].astype(NARROW), None), h, None, length=3)
    h = h @ p["twice"].astype(NARROW) + p["twice"][0].astype(NARROW)
    h = h + p["gathered"][jnp.zeros(h.shape[0], int)].astype(NARROW) + p["repeated"].astype(NARROW)
    h = h.astype(jnp.float32) @ p["plain"] + (h @ p["both"].astype(NARROW)) * p["both"].sum()
    return h.sum() * p["count"].astype(jnp.float32)


def test_which_types_are_seen():
    w = jnp.eye(2)
    own = {"moved": jnp.ones((2, 3)), "count": jnp.ones((), jnp.int32), "repeated": jnp.ones(2)}
    params = dict.fromkeys(("cast", "inside", "looped", "twice", "plain", "both", "gathered"), w) | own
    seen = types_in_use(uses, params, jnp.ones((4, 2)))
    narrow = {name for name, dtype in seen.items() if dtype == NARROW}
    assert narrow == {"cast", "moved", "inside", "repeated"}  # a sum over rows after the cast is one reduction
    assert seen["count"] == jnp.int32
    assert {seen[name] for name in ("twice", "plain", "both", "looped", "gathered")} == {jnp.dtype("float32")}
    assert types_in_use(lambda p: p, w) == w.dtype  # what is given back is used


FIELDS = (
    Field("label", "label", num_classes=3),
    Field("obs", "vector", (2,)),
    Field("picture", "image", (8, 8, 1)),
    Field("words", "sequence", (4, 2)),
    Field("points", "set", (3, 2)),
)
_NOT_IMAGES = (*FIELDS[:2], *FIELDS[3:])
TAKES = {
    "dit": FIELDS,
    "mlp": (*FIELDS[:2], FIELDS[4]),
    "resmlp": _NOT_IMAGES,
    "transformer": _NOT_IMAGES,
    "unet": FIELDS[:1],
    "unet1d": _NOT_IMAGES,
}
SHAPES = {"mlp": (2,), "resmlp": (2,), "transformer": (4, 2), "unet1d": (4, 2)}
SMALL = {"width": 48, "depth": 2, "heads": 2, "channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_network_declares_is_what_its_program_does(name):
    """In bfloat16 with conditions of every kind, whose encoders declare nothing. Only shapes are computed."""
    defaults_of = defaults(name).model
    keys = {key: value for key, value in SMALL.items() if key in defaults_of and (key, name) != ("heads", "adm")}
    keys |= {"head_width": 16} if "head_width" in defaults_of else {}
    keys |= {"dtype": "bfloat16"} if "dtype" in defaults_of else {}
    fields, shape = TAKES.get(name, FIELDS[:3]), SHAPES.get(name, (8, 8, 3))
    make = lambda rngs: MODELS[name](shape, fields=fields, rngs=rngs, **keys)
    network = Network.of(functional(make))
    like = jax.eval_shape(network.init, jax.random.key(0))
    types = {f.name: jnp.int32 if f.kind == "label" else jnp.float32 for f in fields}
    cond = {f.name: jax.ShapeDtypeStruct((4, *f.shape), types[f.name]) for f in fields}
    call = lambda params, *inputs: network.apply(Variables(params, like.state), *inputs)[0]
    x, t = jax.ShapeDtypeStruct((4, *shape), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)
    seen = types_in_use(call, like.params, t, x, cond)
    declared = network.traits.types(like.params)
    narrow = lambda types: {path_name(p) for p, t in jax.tree.leaves_with_path(types) if t == NARROW}
    assert narrow(declared) <= narrow(seen)
    missed = {path for path in narrow(seen) - narrow(declared) if not path.startswith("encoders/")}
    assert missed <= {"stem/kernel"}  # of `adm`: only with so many channels that it is not a matrix product of windows
    assert bool(narrow(declared)) == (name in ("adm", "dit", "resmlp", "transformer"))


def test_a_pattern_narrows_only_what_is_wider():
    params = {"a": {"kernel": jnp.ones(2)}, "b": jnp.ones(2), "n": jnp.ones(2, jnp.bfloat16)}
    assert Traits(cast_parameters="a/kernel|n", dtype=jnp.bfloat16).types(params) == {
        "a": {"kernel": NARROW},
        "b": jnp.dtype("float32"),
        "n": NARROW,
    }
    assert Traits(cast_parameters="a|b").types(params) == jax.tree.map(lambda p: p.dtype, params)


@pytest.mark.parametrize("model", ["dit", pytest.param("adm", marks=pytest.mark.slow)])
def test_the_loss_and_its_gradient_are_the_same_numbers(model):
    """The parameters of a bfloat16 network are cast before the call or inside it; its float32 parts stay float32."""
    config = defaults(model)
    small = {
        "adm": {"channels": 32, "multipliers": (1,), "blocks": 1, "attention": (8,), "head_width": 16, "film": True}
    }
    for key, value in small.get(model, {"depth": 1, "width": 48, "heads": 2, "remat": "block"}).items():
        config.model[key] = value
    config = resolve(config)
    method = build(config, DataSpec("images", (8, 8, 3), image_scale(256), levels=256))
    state = jax.jit(lambda: init_state(config, method))()
    params = jax.tree.map(lambda p: p + 0.02 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), state.params)  # no zeros
    batch = Batch(jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32), None)
    loss = lambda params: method.loss(params, Context(), jax.random.key(1), batch).value
    dtypes = method.network.traits.types(params)
    assert {str(dtype) for dtype in jax.tree.leaves(dtypes)} == {"bfloat16", "float32"}

    def cast_first(params):
        found, gradient = jax.value_and_grad(loss)(jax.tree.map(lambda p, dtype: p.astype(dtype), params, dtypes))
        return found, jax.tree.map(lambda g: g.astype(jnp.float32), gradient)

    ours, gradient = jax.jit(cast_first)(params)
    plain, expected = jax.jit(jax.value_and_grad(loss))(params)
    assert ours == plain
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
