"""The PyTorch half of the speed comparison: a worker that times reference 2D workloads on one CPU thread.

It measures torch 2.13.0 with torchcfm 1.0.7, flow_matching 1.0.10 and torchdyn 1.0.6 (see requirements.txt), used as
their own notebooks use them:

* ``icfm``, ``otcfm``: one training step of torchcfm's ``examples/2D_tutorials/Flow_matching_tutorial.ipynb``, with a
  Gaussian source and the eight Gaussians as data. ``sample_8gaussians`` loops over points in Python, so it weighs on
  these steps;
* ``icfm_pooled``: ``icfm`` with the data drawn from a pool made once, so that making the data costs next to nothing;
* ``flow_matching``: one training step of flow_matching's ``examples/2d_flow_matching.ipynb``;
* ``sample``: 10,000 points through torchdyn's dopri5, with the solver settings of the torchcfm tutorial and the
  network in the .npz file that ``BENCH_WEIGHTS`` names (arrays w0, b0 ... w3, b3, each w of shape (in, out)). The
  solver stops at each of the 100 times asked for.

The worker reads one JSON object per line, ``{"task": "icfm", "seconds": 5}``, and answers each with one line,
``{"task": ..., "count": ..., "wall": ..., "cpu": ...}``: training steps (or points sampled) after a warm-up, with the
wall and process time they took. ``sample`` adds ``nfe``, the network calls of its last solve.
"""

# pyright: reportMissingImports=false
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from flow_matching.path import CondOTProbPath
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.models.models import MLP
from torchcfm.utils import sample_8gaussians, torch_wrapper
from torchdyn.core import NeuralODE

BATCH, SIGMA = 256, 0.1
POOL, POINTS = 100_000, 10_000
WARMUP_SECONDS = 0.5

Step = Callable[[], dict[str, float]]  # does one unit of work, returns what to report: "count" is summed over the steps


def torchcfm_step(matcher: ConditionalFlowMatcher, draw_data: Callable[[], Tensor]) -> Step:
    """A training step of torchcfm's tutorial network, as ``matcher`` pairs noise and data."""
    model = MLP(dim=2, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn(BATCH, 2), draw_data())
        loss = torch.mean((model(torch.cat([xt, t[:, None]], dim=-1)) - ut) ** 2)
        loss.backward()
        optimizer.step()
        return {"count": 1}

    return step


def icfm() -> Step:
    return torchcfm_step(ConditionalFlowMatcher(sigma=SIGMA), lambda: sample_8gaussians(BATCH))


def icfm_pooled() -> Step:
    pool = sample_8gaussians(POOL)
    return torchcfm_step(ConditionalFlowMatcher(sigma=SIGMA), lambda: pool[torch.randint(POOL, (BATCH,))])


def otcfm() -> Step:
    return torchcfm_step(ExactOptimalTransportConditionalFlowMatcher(sigma=SIGMA), lambda: sample_8gaussians(BATCH))


class Swish(nn.Module):
    """The activation as flow_matching's notebook has it: two kernels, not the fused ``torch.nn.SiLU``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * x


def checkerboard(size: int) -> Tensor:
    """Points on alternate squares, of side 1 / 0.45, of the notebook's checkerboard."""
    column = 4 * torch.rand(size) - 2
    row = torch.rand(size) - 2 * torch.randint(2, (size,)) + column.floor() % 2
    return torch.stack([column, row], dim=1) / 0.45


def flow_matching(batch: int = 4096, width: int = 512, depth: int = 4) -> Step:
    sizes = [3, *[width] * depth]
    hidden = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), Swish())]
    model = nn.Sequential(*hidden, nn.Linear(width, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    path = CondOTProbPath()

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        x1 = checkerboard(batch)
        point = path.sample(t=torch.rand(batch), x_0=torch.randn_like(x1), x_1=x1)
        loss = torch.pow(model(torch.cat([point.x_t, point.t[:, None]], dim=1)) - point.dx_t, 2).mean()
        loss.backward()
        optimizer.step()
        return {"count": 1}

    return step


def sample() -> Step:
    model = MLP(dim=2, time_varying=True)
    with np.load(os.environ["BENCH_WEIGHTS"]) as weights, torch.no_grad():
        for i, layer in enumerate(model.net[::2]):  # every other one is an activation
            layer.weight.copy_(torch.from_numpy(weights[f"w{i}"].T))
            layer.bias.copy_(torch.from_numpy(weights[f"b{i}"]))
    node = NeuralODE(torch_wrapper(model), solver="dopri5", sensitivity="adjoint", atol=1e-4, rtol=1e-4)

    def step() -> dict[str, float]:
        node.vf.nfe = 0
        with torch.no_grad():
            node.trajectory(torch.randn(POINTS, 2), t_span=torch.linspace(0, 1, 100))
        return {"count": POINTS, "nfe": int(node.vf.nfe)}

    return step


# cached, so that a task keeps its network, optimizer and data from one request to the next
TASKS = {task.__name__: functools.cache(task) for task in (icfm, icfm_pooled, otcfm, flow_matching, sample)}


def measure(step: Step, seconds: float) -> dict[str, float]:
    """Repeat ``step`` for about ``seconds``, at least once."""
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        report = step()
        count += report["count"]
        if (elapsed := time.perf_counter() - wall) >= seconds:
            return report | {"count": count, "wall": elapsed, "cpu": time.process_time() - cpu}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for line in sys.stdin:
        request = json.loads(line)
        step = TASKS[request["task"]]()
        measure(step, WARMUP_SECONDS)
        print(json.dumps({"task": request["task"], **measure(step, request["seconds"])}), flush=True)


if __name__ == "__main__":
    main()
