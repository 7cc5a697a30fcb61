"""Memory and time of each divergence estimator and of each adjoint: the tables of docs/howto/likelihood.md.

    JAX_PLATFORMS=cpu taskset -c 0 python scripts/benchmarks/likelihood_memory.py

The velocity is an MLP (two hidden layers of 256) for 256 numbers, and the batch has 64 rows. Memory is that of
temporary arrays in the program (`memory_analysis().temp_size_in_bytes`). Times are processor seconds, the median
of three calls. Gradients are those of the mean of log p with one Hutchinson probe, for `forward` in one direction.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import likelihood
from flowjax.likelihood import DivergenceEstimator, Exact, Hutchinson, HutchPlusPlus
from flowjax.sources import Normal

D, WIDTH, ROWS = 256, 256, 64
FIXED, ADAPTIVE = {"solver": "rk4", "steps": 10}, {"rtol": 1e-4, "atol": 1e-4}

ESTIMATORS = (
    Exact(),
    Exact(at_once=16),
    Exact("reverse"),
    Hutchinson(1),
    Hutchinson(16),
    Hutchinson(16, "gaussian"),
    Hutchinson(16, "orthogonal"),
    HutchPlusPlus(15),
    HutchPlusPlus(48),
)
ADJOINTS = {"recursive": ADAPTIVE, "backsolve": ADAPTIVE, "forward": ADAPTIVE, "direct": FIXED}


def network() -> Any:
    sizes = (D + 1, WIDTH, WIDTH, D)
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, (a, b)) / jnp.sqrt(a) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def score(params: Any, x: Any, divergence: DivergenceEstimator, **options: Any) -> likelihood.LogDensity:
    def field(t: Any, x: Any, cond: Any) -> Any:
        h = jnp.concatenate([x, jnp.broadcast_to(t, (len(x), 1)).astype(x.dtype)], -1)
        for w in params[:-1]:
            h = jax.nn.silu(h @ w)
        return h @ params[-1]

    return likelihood.log_prob(field, x, Normal((D,)), divergence=divergence, key=jax.random.key(1), **options)


def measured(f: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    """The cells of a row, "MiB | seconds", and the result."""
    compiled, seconds, out = jax.jit(f).lower(*args).compile(), [], None
    analysis: Any = compiled.memory_analysis()
    for _ in range(3):
        start = time.process_time()
        out = jax.block_until_ready(compiled(*args))
        seconds.append(time.process_time() - start)
    return f"{analysis.temp_size_in_bytes / 2**20:.1f} | {statistics.median(seconds):.3g}", out


def main() -> None:
    params, x = network(), jax.random.normal(jax.random.key(2), (ROWS, D))
    exact = score(params, x, Exact(), **FIXED).log_prob
    print("| estimator | MiB | s | error (root mean square), nats | mean standard error |\n|---|---|---|---|---|")
    for one in ESTIMATORS:
        cells, found = measured(lambda params, x, one=one: score(params, x, one, **FIXED)[:2], params, x)
        error = float(jnp.sqrt(((found[0] - exact) ** 2).mean()))
        known = "unknown" if found[1] is None else f"{float(found[1].mean()):.2g}"
        print(f"| `{one}` | {cells} | {error:.2g} | {known} |", flush=True)
    print("\n| adjoint | solve | gradient by | MiB | s | evaluations |\n|---|---|---|---|---|---|")
    for name, by in ((name, by) for by in ("parameters", "points") for name in ADJOINTS):
        options, argument = ADJOINTS[name], 0 if by == "parameters" else 1
        loss = lambda params, x, name=name, options=options: score(
            params, x, Hutchinson(1), adjoint=name, **options
        ).log_prob.mean()
        if name == "forward":  # one directional derivative
            along = jax.tree.map(jnp.ones_like, (params, x)[argument])
            f = partial(directional, loss, argument, along)
        else:
            f = jax.grad(loss, argnums=argument)
        cells, _ = measured(f, params, x)
        nfe = np.asarray(score(params, x, Hutchinson(1), **options).stats.nfe)
        solve = f"{options['steps']} steps of RK4" if "steps" in options else "dopri5, 1e-4"
        print(f"| `{name}` | {solve} | {by} | {cells} | {nfe.mean():.0f} |", flush=True)


def directional(loss: Callable[..., Any], argument: int, along: Any, params: Any, x: Any) -> Any:
    """The derivative of the loss in one direction of the parameters or of the points."""
    if argument == 0:
        return jax.jvp(lambda params: loss(params, x), (params,), (along,))[1]
    return jax.jvp(lambda x: loss(params, x), (x,), (along,))[1]


if __name__ == "__main__":
    main()
