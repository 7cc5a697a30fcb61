"""What devices send each other in a training step, read from compiled programs, and the efficiency that it implies.

The full form compiles the training loop for pods of TPUs and of H200s that need not be there
(`scripts/benchmarks/scaling.py compile`). The quick form compiles that of a tiny network for 8 simulated CPU devices,
in a process of its own, since the number of devices is fixed when JAX starts. Both need a checkout of the repository.
"""

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowjax.errors import ConfigError
from flowjax.plots import lines
from flowjax.reproduce import Experiment, Form, Results, Study

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
PROGRAMS = [
    *[("unet", pod, mesh, ()) for pod, mesh in (("v5p:2x2x2", "8x1"), ("v5p:4x4x4", "64x1"), ("v5p:8x8x4", "256x1"))],
    *[("unet", pod, mesh, ()) for pod, mesh in (("h200:1x8", "8x1"), ("h200:8x8", "64x1"), ("h200:32x8", "256x1"))],
    *[("dit_l2", "v5p:2x2x2", mesh, ()) for mesh in ("8x1", "1x8")],
    ("dit_l2", "v5p:4x4x4", "4x16", ()),
    *[("dit_l2", "v5p:8x8x4", mesh, ()) for mesh in ("32x8", "1x256")],
    *[("dit_l2", "h200:1x8", mesh, ()) for mesh in ("8x1", "1x8")],
    ("dit_l2", "h200:8x8", "4x16", ()),
    *[("dit_l2", "h200:32x8", mesh, ()) for mesh in ("32x8", "1x256")],
    *[
        ("unet", "h200:1x2", mesh, ("--set", "model.dropout=0.0", "--apart", "--batch", "512"))
        for mesh in ("1x1", "2x1")
    ],
    *[("unet", "h200:1x2", mesh, ("--set", "model.dropout=0.0", "--batch", "512")) for mesh in ("1x1", "2x1", "1x2")],
    *[("dit_l2", "h200:1x2", mesh, ()) for mesh in ("1x1", "2x1", "1x2")],
    *[("dit_xl2", "h200:1x2", mesh, ("--set", "model.remat=block")) for mesh in ("1x1", "1x2")],
]
"""Model, devices, mesh (data x fsdp), and other arguments."""

SMALL = """
import argparse, json
import scaling

scaling.DITS["dit_tiny"] = (2, 64, 4)
args = argparse.Namespace(model="dit_tiny", batch=2, set=[], text=None)
for mesh in ("1x1", "8x1", "1x8", "2x4"):
    import jax
    trainer = scaling.assembled(args, mesh, jax.devices())
    program = trainer._run.jitted.lower(trainer.like(), trainer.arrays_like(), 1, None).compile()
    print(json.dumps(scaling.described(args, mesh, trainer, program)), flush=True)
"""


def python(*argv: str, **env: str) -> list[dict[str, Any]]:
    """Runs Python with the benchmarks on its path, and returns the lines of JSON that it prints."""
    if not BENCHMARKS.is_dir():
        raise ConfigError(f"the experiment scaling needs {BENCHMARKS}: run it in a checkout of the repository")
    paths = [str(BENCHMARKS), str(BENCHMARKS.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    changes = {"PYTHONPATH": os.pathsep.join(paths), **env}
    done = subprocess.run([sys.executable, *argv], env=os.environ | changes, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with exit code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def implied(row: dict[str, Any]) -> dict[str, Any]:
    """What a compiled program says of itself, and the times that the machine's links imply."""
    data, fsdp = map(int, row["mesh"].split("x"))
    found = {
        "devices": data * fsdp,
        "parameters": row["parameters"],
        "sent_mb": row["sent"] / 1e6,
        "state_gib": row["state_gib"],
        "temporary_gib": row["temporary_gib"],
        "kernels": row["kernels"],
        "gflops": row["flops"] / 1e9,
        "collectives": row["collectives"],
    }
    if "topology" not in row:
        return found
    sys.path.append(str(BENCHMARKS))
    scaling: Any = importlib.import_module("scaling")
    machine = scaling.MACHINES[row["topology"].partition(":")[0]][1]
    work = row["flops"] / found["devices"] / machine.flops / scaling.UTILISATION
    links = machine.seconds(row["links"])
    return found | {"arithmetic_ms": 1e3 * work, "links_ms": 1e3 * links, "efficiency": work / (work + links)}


def label(model: str, pod: str, mesh: str, options: tuple[str, ...]) -> str:
    changes = [option for option in options if "=" in option] + ["apart"] * ("--apart" in options)
    return ", ".join([model, pod, mesh, *changes])


def compiled(model: str, pod: str, mesh: str, options: tuple[str, ...]) -> dict[str, Any]:
    """One program of the full form."""
    script = str(BENCHMARKS / "scaling.py")
    (row,) = python(script, "compile", "--model", model, "--topology", pod, "--mesh", mesh, *options)
    return implied(row)


def run(study: Study) -> None:
    if not study.quick:
        for program in PROGRAMS:
            study.measure(label(*program), partial(compiled, *program))
        return
    flags = "--xla_force_host_platform_device_count=8"
    small: list[dict[str, Any]] = []  # all meshes are compiled in one process
    compile_small = lambda: small.extend(python("-c", SMALL, JAX_PLATFORMS="cpu", XLA_FLAGS=flags))
    for i, mesh in enumerate(("1x1", "8x1", "1x8", "2x4")):
        study.measure(f"dit_tiny, 8 CPU devices, {mesh}", lambda i=i: (small or compile_small(), implied(small[i]))[1])


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """The implied efficiency against the number of devices."""
    curves = {}
    for model in ("unet", "dit_l2"):
        for pod, name in (("v5p", "TPU v5p"), ("h200", "H200")):
            found = {}
            for setting in results.settings:
                head, _, mesh = setting.split(", ")[:3]
                if head == model and f", {pod}:" in setting and not mesh.startswith("1x") and "h200:1x2" not in setting:
                    found[results.mean(setting, "devices")] = 100 * results.mean(setting, "efficiency")
            if found:
                curves[f"{model}, {name}"] = ([*found], [*found.values()])
    if not curves:
        return {}
    figure = lines(curves, "devices", "implied efficiency, nothing hidden, %", log=False)
    figure.axes[0].set(xscale="log", ylim=(0, 100))
    figure.axes[0].set_xticks((8, 64, 256), ("8", "64", "256"))
    figure.axes[0].minorticks_off()
    return {"efficiency": figure}


EXPERIMENT = Experiment(
    title="What does a training step send between devices, and what efficiency does it imply?",
    source="",
    full=Form("30 minutes on 2 CPU cores, with the compilers of flowjax-research[tpu] and flowjax-research[cuda13]"),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "sent_mb": "sent by a device, MB a step",
        "arithmetic_ms": "arithmetic, ms",
        "links_ms": "links, ms",
        "efficiency": "efficiency, nothing hidden",
        "state_gib": "state, GiB",
        "temporary_gib": "besides, GiB",
        "kernels": "kernels",
    },
    draw=draw,
)
