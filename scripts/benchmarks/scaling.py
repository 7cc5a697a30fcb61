"""One training step on several devices: measured on those that are here, and compiled for a pod that is not.

    python scripts/benchmarks/scaling.py measure --model unet --batch 512 --mesh 1x1 2x1 1x2
    python scripts/benchmarks/scaling.py compile --model unet --mesh 8x1 --topology v5p:2x2x2 >> rows.jsonl
    python scripts/benchmarks/scaling.py report rows.jsonl

A mesh is DATAxFSDP. `measure` compiles the loop of `flowjax train` for each and times them in turns: the rate, its
share of as many devices without links, memory, and what the devices send each other. Devices are not equally fast:
`efficiency` is against the slowest of them alone, since it is the one that the others wait for. `compile` does the
same but the timing for devices that are not here (`topologies.py`). Both print a JSON line a mesh. `report` makes the
table of weak scaling of `compile`'s lines, with the step times that the links of MACHINES imply, or of their programs;
`experiments/scaling/README.md` says what it assumes.
"""

import argparse
import json
import os
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = {"unet": 128, "dit_l2": 32, "dit_xl2": 32}
"""Images a device."""

DITS = {"dit_l2": (24, 1024, 16), "dit_xl2": (28, 1152, 16)}
"""Depth, width and heads."""

UTILISATION = 0.4
"""Of a device's peak that the arithmetic alone reaches."""


Link = tuple[Sequence[int], Sequence[Sequence[int]], float]
"""Devices of a group, or pairs of a permutation, and the bytes that each of them sends."""


@dataclass(frozen=True)
class Machine:
    """Devices and their links.

    Attributes:
        flops: a device's peak in bfloat16.
        link: bytes a second that a device sends to its neighbours, all links together.
        near: how many devices are that close; all of them if 0.
        far: bytes a second that each device sends beyond.
    """

    flops: float
    link: float
    near: int = 0
    far: float = 0.0

    def seconds(self, links: Sequence[Link]) -> float:
        """To send all of it, one after the other.

        Devices are side by side in the order of the mesh, whose last axis is `fsdp`. A collective over several hosts
        runs among the devices of a host first, then each of them carries its share beyond. A permutation is as slow as
        its slowest pair.
        """
        host = lambda device: device // self.near if self.near else 0
        total = 0.0
        for group, pairs, sent in links:
            if pairs:
                total += sent / (self.link if all(host(a) == host(b) for a, b in pairs) else self.far)
                continue
            n, near = len(group), max(Counter(map(host, group)).values())
            volume, hosts = sent * n / (n - 1), n / near
            total += volume * (near - 1) / near / self.link
            if hosts > 1:
                total += volume / near * (hosts - 1) / hosts / self.far
        return total


MACHINES = {
    "v5p": ("TPU v5p", Machine(459e12, 2 * 90e9)),  # along one dimension of its torus, both ways
    "h200": ("H200, 8 a host, 400 Gb/s each", Machine(790e12, 450e9, 8, 50e9)),
}
"""By the kind of a topology."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    here, pod = commands.add_parser("measure"), commands.add_parser("compile")
    for one in (here, pod):
        one.add_argument("--model", choices=list(BATCH), default="unet")
        one.add_argument("--batch", type=int, default=0, help="images a device")
        one.add_argument("--mesh", nargs="+", default=["1x1"])
        one.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config")
        one.add_argument("--text", type=Path, help="a folder for the programs")
    here.add_argument("--steps", type=int, default=20)
    here.add_argument("--rounds", type=int, default=3)
    here.add_argument("--profile", help="a folder for the kernels of each mesh by time")
    pod.add_argument("--topology", default="v5p:2x2x2", help="or h200:HOSTSxGPUS")
    pod.add_argument("--apart", action="store_true", help="parameters by themselves also on GPUs, not in stacks")
    report = commands.add_parser("report")
    report.add_argument("--programs", action="store_true", help="what is in memory and how many kernels, no times")
    report.add_argument("rows", nargs="+", type=Path)
    args = parser.parse_args()
    if args.command == "report":
        rows = [json.loads(line) for path in args.rows for line in path.read_text().splitlines()]
        print((programs if args.programs else table)([row for row in rows if "topology" in row]))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for line in measured(args) if args.command == "measure" else compiled(args):
        print(json.dumps(line), flush=True)


def compiled(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What can be said of the programs for a topology."""
    from topologies import OPTIONS, devices, fuse

    from flowjax.training import parameters

    kind = args.topology.partition(":")[0]
    there, options = devices(args.topology), OPTIONS.get(kind)
    if kind == "h200":
        fuse()
    if args.apart:
        parameters.PLATFORMS = ()
    for mesh in args.mesh:
        trainer = assembled(args, mesh, there)
        start = time.perf_counter()
        program = trainer._run.jitted.lower(trainer.like(), trainer.arrays_like(), 1, None).compile(options)
        took = {
            "topology": args.topology,
            "apart": args.apart,
            "compile_seconds": round(time.perf_counter() - start, 1),
        }
        yield described(args, mesh, trainer, program) | took


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The same of the devices that are here, and how fast they are."""
    import jax
    import numpy as np
    from unet_gpu import profile

    from flowjax.training.trainer import CompiledAhead

    devices = jax.devices()
    used = max(int(np.prod([int(n) for n in mesh.split("x")])) for mesh in args.mesh)
    if used > len(devices):
        raise SystemExit(f"a --mesh of {used} devices; there are {len(devices)}")
    meshes = ["1x1"] * used + [mesh for mesh in args.mesh if mesh != "1x1"]  # each device alone first
    trainers = [assembled(args, mesh, devices[i:] if i < used else devices) for i, mesh in enumerate(meshes)]
    for trainer in trainers:
        if not isinstance(trainer._run, CompiledAhead):
            raise SystemExit(f"{args.model} has no compiled loop on a CPU: take a GPU or TPU, or --model dit_l2")
        trainer._run.start(trainer.like(), trainer.arrays_like(), 1, None)  # side by side
    programs = [trainer._run.program() for trainer in trainers]
    runs = [[trainer.init(), trainer.arrays()] for trainer in trainers]
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(args.rounds + 1):  # the first one warms up
        for program, run, mine in zip(programs, runs, seconds, strict=True):
            start = time.perf_counter()
            run[0], metrics = program(*run, args.steps)
            assert not int(metrics.bad_step), "the loss is not finite"
            if turn:
                mine.append((time.perf_counter() - start) / args.steps)
    batch = args.batch or BATCH[args.model]
    rate = lambda mine: batch / statistics.median(mine)  # of a device
    alone = min(map(rate, seconds[:used]))
    for i, (mesh, trainer, program, mine) in enumerate(zip(meshes, trainers, programs, seconds, strict=True)):
        if args.profile:
            profile(lambda program=program, run=runs[i]: again(program, run), f"{args.profile}/{i}_{mesh}")
        yield described(args, mesh, trainer, program) | {
            "milliseconds": 1e3 * statistics.median(mine),
            "range": [round(1e3 * s, 2) for s in (min(mine), max(mine))],
            "images_per_second": rate(mine) * trainer.mesh.size,
            "efficiency": rate(mine) / alone,
        }


def again(program: Any, run: list[Any]) -> None:
    """Five more steps."""
    run[0], metrics = program(*run, 5)
    metrics.loss.block_until_ready()


def described(args: argparse.Namespace, mesh: str, trainer: Any, program: Any) -> dict[str, Any]:
    """What a compiled program says of itself."""
    import jax
    from collectives import collectives, kernels, summary

    memory, text = program.memory_analysis(), program.as_text()
    if args.text:
        args.text.mkdir(parents=True, exist_ok=True)
        (args.text / f"{args.model}_{mesh}.txt").write_text(text)
    found = [one for one in collectives(text) if one.looped]
    links = defaultdict[Any, float](float)
    for one in found:
        links[one.group, one.pairs] += one.sent
    return {
        "model": args.model,
        "parameters": trainer.parameters(),
        "mesh": mesh,
        "device": trainer.mesh.devices.flat[0].device_kind,
        "batch": trainer.config.train.batch_size,
        "set": args.set,
        "flops": trainer.flops_per_step,
        "sent": sum(links.values()),
        "links": [(*among, sent) for among, sent in links.items()],
        "collectives": summary(found),
        "kernels": kernels(text),
        "state_gib": memory.argument_size_in_bytes / 2**30,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "jax": jax.__version__,
    }


def assembled(args: argparse.Namespace, mesh: str, devices: Any) -> Any:
    """The trainer of the U-Net of CIFAR-10, or of a DiT on latents of 256 x 256 images, on the first devices."""
    import numpy as np

    from flowjax.batch import Batch
    from flowjax.build import build
    from flowjax.config import changed, defaults, literal
    from flowjax.data import Dataset, DataSpec
    from flowjax.data.affine import image_scale
    from flowjax.data.dataset import sample_rows
    from flowjax.training.trainer import Trainer

    data, fsdp = map(int, mesh.split("x"))
    config = defaults("adm" if args.model == "unet" else "dit")
    shape = (32, 32, 3) if args.model == "unet" else (32, 32, 4)
    if args.model in DITS:
        config.model.depth, config.model.width, config.model.heads = DITS[args.model]
    config.train.batch_size = (args.batch or BATCH[args.model]) * data * fsdp
    config.mesh.data, config.mesh.fsdp = data, fsdp
    config = changed(config, {key: literal(value) for key, _, value in (pair.partition("=") for pair in args.set)})
    x = np.random.default_rng(0).integers(0, 256, (1024, *shape), np.uint8)
    spec = DataSpec("images", shape, image_scale(256), levels=256)
    dataset = Dataset(spec, x[:8].astype(np.float32), arrays=lambda: Batch(x), sample=sample_rows)
    return Trainer(config, build(config, spec), dataset, devices[: data * fsdp])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a program."""
    lines = [
        "| model | devices | data x fsdp | sent by a device, MB a step | machine | arithmetic, ms | links, ms "
        "| efficiency, nothing hidden | all hidden |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        data, fsdp = map(int, row["mesh"].split("x"))
        n = data * fsdp
        name, machine = MACHINES[row["topology"].partition(":")[0]]
        work = row["flops"] / n / machine.flops / UTILISATION
        links = machine.seconds(row["links"])
        lines.append(
            f"| {row['model']} | {n} | {row['mesh']} | {row['sent'] / 1e6:,.0f} | {name} "
            f"| {work * 1e3:.1f} | {links * 1e3:.2f} | {work / (work + links):.1%} "
            f"| {min(1.0, work / max(work, links)):.0%} |"
        )
    return "\n".join(lines)


def programs(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a program."""
    lines = ["| model | data x fsdp | state, GiB | besides | sent, MB | kernels |", "|---|---|---|---|---|---|"]
    for row in rows:
        name = ", ".join([row["model"], *row["set"], *["apart"] * row["apart"]])
        lines.append(
            f"| {name} | {row['mesh']} | {row['state_gib']:.1f} | {row['temporary_gib']:.1f} "
            f"| {row['sent'] / 1e6:,.0f} | {row['kernels']:,} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
