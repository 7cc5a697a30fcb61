"""Training: its parts, and that a run stopped and resumed anywhere is bitwise equal to an uninterrupted one."""

import dataclasses
import errno
import json
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import conditions
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.conditions import NO_LABEL
from flowjax.config import defaults, resolve
from flowjax.data import DataError, open_dataset
from flowjax.data.dataset import ArrayRows
from flowjax.data.stream import Stream
from flowjax.errors import ConfigError, RunFault
from flowjax.methods import Loss, MethodDefaults, Network
from flowjax.names import MODELS
from flowjax.training import averages, loop, optimizers
from flowjax.training.checkpoints import CheckpointError, Checkpoints, Saver
from flowjax.training.loop import train
from flowjax.training.outputs import RunOutputs
from flowjax.training.profiling import Trace
from flowjax.training.step import LOOPS
from flowjax.training.trainer import CompiledAhead, Trainer
from flowjax.training.writers import read_metrics
from tests.conftest import reproducible_records, simulated


def config(**changes):
    c = defaults("mlp")
    c.model.width, c.model.depth = 16, 2
    c.train.update({"steps": 60, "batch_size": 32, "log_every": 20, "save_every": 20, "lr": 1e-2, **changes})
    return c


def assemble(c, name="gaussians8"):
    c.data.name = name
    dataset = open_dataset(name)
    return Trainer(resolve(c), build(resolve(c), dataset.spec), dataset)


def run(trainer, workdir, resume=None):
    workdir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = trainer.init() if resume is None else checkpoints.restore(resume, trainer.like())
    return train(trainer, RunOutputs(workdir, checkpoints), state)


@pytest.fixture(scope="module")
def trainer():
    return assemble(config())


@pytest.fixture(scope="module")
def whole(trainer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, run(trainer, workdir)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_metrics_are_complete_and_the_loss_falls(whole):
    records = read_metrics(whole[0] / "metrics.jsonl")
    assert [r["step"] for r in records] == [20, 40, 60]
    assert set(records[0]) == {
        "step",
        "samples_seen",
        "loss",
        "val_loss",
        "learning_rate",
        "grad_norm",
        "marginal_error",
        "skipped_steps",
        "samples_per_second",
        "mfu",
        "device_gib",
        "checkpoint_seconds",
        "stall_seconds",
        "time",
    }
    assert records[-1]["samples_seen"] == 60 * 32
    assert records[-1]["loss"] < records[0]["loss"]


def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(trainer, whole, tmp_path):
    """Stopped at step 20 of 60 and resumed by a new Trainer that logs and saves at other steps. The final state is the
    same, except for the metrics summed since the last record, which was at another step."""
    short = assemble(config(steps=60))
    saver = Checkpoints(tmp_path / "checkpoints").saver(3, 0)
    state, _ = short.run(short.init(), short.arrays(), 7)
    state, _ = short.run(state, short.arrays(), 13)
    saver.save(state, 1.0)
    saver.close()
    result = run(assemble(config(log_every=30, save_every=7)), tmp_path, resume=20)
    at_record = dataclasses.replace(result.state, running=whole[1].state.running)
    assert_same_bits(at_record, whole[1].state)


def test_muon_averages_and_the_guard_resume_bitwise(tmp_path):
    """The parts of the state that a plain run lacks are saved and restored too, and records have `skipped_steps`."""
    c = config(optimizer="muon", spike=1.05, steps=160, log_every=80, save_every=80)
    c.ema.widths, c.ema.snapshots = (0.05, 0.1), 8
    trainer = assemble(c)
    done = run(trainer, tmp_path / "a")
    skipped = read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]["skipped_steps"]
    assert 0 < skipped < 60  # after the first hundred steps, which are always taken
    shutil.copytree(tmp_path / "a" / "checkpoints" / "80", tmp_path / "b" / "checkpoints" / "80")
    resumed = run(trainer, tmp_path / "b", resume=80)
    assert_same_bits(resumed.state, done.state)


def test_checkpoints_keep_last_best_every_and_single_ones(tmp_path, trainer):
    checkpoints = Checkpoints(tmp_path / "c")
    saver, state = checkpoints.saver(2, 30, (10, 55)), trainer.init()
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, 2.6), (60, 2.7)):
        saver.save(
            dataclasses.replace(state, step=jnp.asarray(step)),
            loss,
        )
    saver.close()
    assert checkpoints.steps() == [10, 20, 30, 50, 60]
    assert (checkpoints.choose("best"), checkpoints.choose("last"), checkpoints.choose("50")) == (20, 60, 50)
    with pytest.raises(CheckpointError, match=r"no checkpoint 55 .*: there are 10, 20, 30, 50, 60"):
        checkpoints.choose("55")
    restored = checkpoints.restore(60, trainer.like())
    assert jnp.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
    assert_same_bits(restored.params, state.params)


def test_an_empty_and_a_corrupt_checkpoint_offer_the_one_before(tmp_path, trainer):
    saver, state = Checkpoints(tmp_path / "c").saver(3, 0), trainer.init()
    for step in (10, 20):
        saver.save(dataclasses.replace(state, step=jnp.asarray(step)), 1.0)
    saver.close()
    (tmp_path / "c" / "30").mkdir()
    for path in (tmp_path / "c" / "20").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(b"\0" * 7)
    again = Checkpoints(tmp_path / "c")
    with pytest.raises(
        CheckpointError, match=r"checkpoint 30 .* cannot be read .*one before it is 20: add --checkpoint 20"
    ):
        again.restore(30, trainer.like())
    with pytest.raises(CheckpointError, match="one before it is 10"):
        again.restore(20, trainer.like())
    assert int(again.restore(10, trainer.like()).step) == 10


def test_nan_stops_the_run_and_keeps_the_last_good_state(tmp_path, trainer):
    """A learning rate so large that the loss diverges: the error names the step, and the saved state is finite."""
    bad = assemble(config())
    good_run = bad.run

    def explode(state, arrays, n):
        if int(state.step) >= 20:
            params = jax.tree.map(lambda a: a * 1e30, state.params)
            state = dataclasses.replace(state, params=params)
        return good_run(state, arrays, n)

    bad.run = explode
    with pytest.raises(RunFault, match=r"not finite at step \d+; the checkpoint of step 20 is kept"):
        run(bad, tmp_path)
    state = Checkpoints(tmp_path / "checkpoints").restore(20, trainer.like())
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(state.params))


def test_the_step_before_nan_is_returned(trainer):
    state, _ = trainer.run(trainer.init(), trainer.arrays(), 3)
    poisoned = dataclasses.replace(state, params=jax.tree.map(lambda a: a * jnp.nan, state.params))
    after, metrics = trainer.run(poisoned, trainer.arrays(), 5)
    assert int(metrics.bad_step) == 4
    assert int(after.step) == 3


def test_a_full_disk_is_one_line(tmp_path, trainer, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Saver, "save", full)
    with pytest.raises(RunFault, match=r"cannot write to .*No space left on device"):
        run(trainer, tmp_path)


def test_loops_on_the_host_and_in_stacks_take_the_same_steps(trainer):
    from flowjax.training.parameters import Stacks
    from flowjax.training.step import make_run

    on_host = make_run(
        trainer.make_step(), trainer.method, trainer._get_batch, trainer.mesh, trainer.shardings, on_host=True
    )
    a, ma = on_host(trainer.init(), trainer.arrays(), 5)
    b, mb = trainer.run(trainer.init(), trainer.arrays(), 5)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert float(ma.loss) == pytest.approx(float(mb.loss), rel=1e-5)
    stacks = Stacks(trainer.like().params, largest=100)
    in_stacks = make_run(
        trainer.make_step(stacks), trainer.method, trainer._get_batch, trainer.mesh, trainer.shardings, stacks=stacks
    )
    c, mc = in_stacks(trainer.init(), trainer.arrays(), 5)
    assert jax.tree.structure(c) == jax.tree.structure(b)
    of = lambda state: jax.tree.leaves((state.params, state.opt_state, state.ema))
    for x, y in zip(of(c), of(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    cut, _ = in_stacks(trainer.init(), trainer.arrays(), 2)
    assert_same_bits(in_stacks(cut, trainer.arrays(), 3)[0], c)
    assert float(mc.grad_norm) == pytest.approx(float(mb.grad_norm), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_networks_with_convolutions_declare_that_cpu_loops_are_slow(name, tmp_path):
    """On CPUs XLA uses its fast kernels for convolutions only outside loops. The test looks for them in the jaxpr."""
    c = defaults(name)
    own = {"width": 16, "depth": 1, "channels": 32, "multipliers": (1,), "blocks": 1, "heads": 2, "head_width": 8}
    own |= {"film": True}  # which adm needs at 32 channels
    c.model.update({key: value for key, value in own.items() if key in c.model and (key, name) != ("heads", "adm")})
    c.train.batch_size = 2
    if name in ("transformer", "unet1d"):
        c.data.path = str(tmp_path / "x.npy")
        np.save(c.data.path, np.random.default_rng(0).normal(size=(32, 8, 2)).astype(np.float32))
    else:
        c.data.name = "digits"
    dataset = open_dataset(c.data.name, c.data.path)
    trainer = Trainer(resolve(c), build(resolve(c), dataset.spec), dataset)
    like = trainer.like()
    jaxpr = jax.make_jaxpr(trainer.make_step())(like, like.key, trainer._batch_like)
    convolves = "conv_general_dilated" in str(jaxpr)
    assert trainer.method.network.traits.slow_in_cpu_loops == convolves
    assert isinstance(trainer._run, CompiledAhead) != convolves  # where tests run: on a CPU


def test_the_loop_is_the_one_that_the_config_names():
    with pytest.raises(ConfigError, match=r"train\.loop: unknown 'hots'; did you mean 'host'"):
        assemble(config(loop="hots"))
    assert LOOPS["auto"](True, "cpu")
    assert not LOOPS["auto"](True, "gpu")
    assert not LOOPS["auto"](False, "cpu")


@pytest.mark.parametrize(
    "couplings",
    [
        pytest.param(names, marks=pytest.mark.slow)
        for names in (("independent", "ot"), ("auction(0.05)", "sinkhorn(2)"))
    ],
    ids=["host", "device"],
)
def test_eight_devices_give_the_losses_of_one(couplings):
    """The same program on 1 and on 8 CPU devices, also with OT: the losses are equal up to the rounding of float32."""
    script = (
        f"couplings = {couplings}"
        + """
import sys, json, jax
sys.path.insert(0, ".")
from tests.training.test_training import assemble, config
out = []
for coupling in couplings:
    c = config(); c.coupling.name = coupling
    t = assemble(c)
    s = t.init()
    for _ in range(5):
        s, m = t.run(s, t.arrays(), 4)
        out.append(float(m.loss))
text = t._run.jitted.lower(t.init(), t.arrays(), 2, None).compile().as_text()
print(json.dumps([len(jax.devices()), out, "all-reduce" in text]))
"""
    )
    results = []
    for devices in (1, 8):
        env = {
            "XLA_FLAGS": simulated(devices),
            "JAX_PLATFORMS": "cpu",
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    assert [(r[0], r[2]) for r in results] == [(1, False), (8, True)]  # the batch is split: gradients are summed
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=2e-5)


def test_ema_half_life_is_in_samples():
    """H samples after the parameters change to a new constant, half of the old value is left in the average."""
    average, half_life, batch = {"w": jnp.ones(())}, 640.0, 32
    start = 10**6
    for i in range(20):
        average = averages.update_ema(
            average, {"w": jnp.zeros(())}, averages.ema_decay(half_life, batch, jnp.asarray(start + i))
        )
    assert float(average["w"]) == pytest.approx(0.5, rel=1e-5)
    assert float(averages.ema_decay(0.0, batch, jnp.asarray(5))) == 0.0
    assert float(averages.ema_decay(1e9, 100, jnp.asarray(2))) == pytest.approx(0.5 ** (100 / (0.05 * 200)), rel=1e-5)


@pytest.mark.parametrize(("name", "half"), [("constant", 1.0), ("cosine", 0.5), ("linear", 0.5)])
def test_learning_rate(name, half):
    c = config(steps=110, warmup=10.0 * 256, batch_size=256, schedule=name, lr=1.0).train
    lr = optimizers.learning_rate(c)
    np.testing.assert_allclose(
        [lr(i) for i in range(10)], np.arange(1, 11) / 10 * 0.9 + 0.01 * np.arange(10, 0, -1), atol=0.1
    )
    assert float(lr(10)) == pytest.approx(1.0)
    assert float(lr(60)) == pytest.approx(half, abs=1e-6)
    assert float(lr(110)) == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-6)


def test_adamw_decays_and_clip_clips():
    c = config(optimizer="adamw", weight_decay=0.1, lr=0.5, schedule="constant", clip=0.0).train
    tx = optimizers.optimizer(c)
    params = {"w": jnp.full(3, 2.0)}
    updates, _ = tx.update({"w": jnp.zeros(3)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    clipped = optimizers.optimizer(config(clip=2.0).train)
    state = clipped.init(params)
    for gradient in (6.0, 600.0):  # Adam is blind to scale within one step: its first moment shows what got through
        _, after = clipped.update({"w": jnp.array([0.0, 0.0, gradient])}, state, params)
        mu = next(leaf for leaf in jax.tree.leaves(after) if jnp.shape(leaf) == (3,))
        np.testing.assert_allclose(mu, [0.0, 0.0, 0.1 * 2.0], rtol=1e-5)


def test_labels_are_dropped_one_by_one():
    labels = jnp.arange(20_000) % 10
    label = conditions.Field("label", "label", num_classes=10, dropout=0.1)
    dropped = conditions.drop(jax.random.key(0), {"label": labels}, (label,))["label"]
    share = float((dropped == NO_LABEL).mean())
    assert share == pytest.approx(0.1, abs=5 * np.sqrt(0.09 / 20_000))
    kept = dropped != NO_LABEL
    np.testing.assert_array_equal(dropped[kept], labels[kept])


def test_a_batch_that_does_not_divide_is_told(monkeypatch):
    from flowjax.training import sharding

    monkeypatch.setattr(jax, "devices", lambda: [None] * 3)
    config = defaults()
    config.train.batch_size = 32
    with pytest.raises(ConfigError, match="batch_size 32 does not divide among 3 devices"):
        sharding.make_mesh(config)


def test_a_streamed_set_trains_and_resumes_the_same(tmp_path):
    """20 steps at once or in two calls, with threads or processes that read, give bitwise the same state."""
    dataset = open_dataset("digits")
    streamed = dataclasses.replace(dataset, sample=None, arrays=tuple, rows=ArrayRows(dataset.arrays()))
    c = config(steps=20, log_every=9, save_every=20)
    c.data.name, c.data.cond = "digits", ("label",)
    c = resolve(c)
    make = lambda: Trainer(c, build(c, dataset.spec), streamed)
    whole = run(make(), tmp_path / "whole")
    c.data.workers = 2
    trainer = make()
    trainer.compile_ahead(fresh=True)
    state, _ = trainer.run(trainer.init(), trainer.prefetcher(0, 11), 11)
    state, _ = trainer.run(state, trainer.prefetcher(11, 9), 9)
    trainer.prefetcher.close()
    assert_same_bits(dataclasses.replace(state, running=whole.state.running), whole.state)


@pytest.mark.parametrize("kind", ["resident", "streamed", "on_host"])
def test_records_depend_neither_on_stops_nor_on_speed(kind, tmp_path, monkeypatch):
    """Stretches of 1, 4 and 7 steps, and a run stopped by a signal between two records, write the same records."""
    c = config(steps=24, log_every=10, save_every=24)
    c.data.name = "digits" if kind == "streamed" else "gaussians8"
    c.ema.widths, c.ema.snapshots = (0.1,), 2
    c.train.loop = "host" if kind == "on_host" else "device"
    c, dataset = resolve(c), open_dataset(c.data.name)
    if kind == "streamed":
        dataset = dataclasses.replace(dataset, sample=None, arrays=tuple, rows=ArrayRows(dataset.arrays()))
    trainer = Trainer(c, build(c, dataset.spec), dataset)
    steps = trainer.run
    snapshots = lambda folder: sorted(path.name for path in (folder / "averages").iterdir())
    folders = [tmp_path / str(length) for length in (1, 4, 7)]

    def interrupted(state, arrays, n):
        if int(state.step) == 12:
            signal.raise_signal(signal.SIGTERM)
        return steps(state, arrays, n)

    for folder, length in zip(folders, (1, 4, 7), strict=True):
        monkeypatch.setattr(loop, "_next_stretch", lambda *_, length=length: length)
        monkeypatch.setattr(loop, "STRETCH", length)
        if length == 4:
            trainer.run = interrupted
            with pytest.raises(loop.Preempted, match="at step 16"):
                run(trainer, folder)
            trainer.run = steps
        run(trainer, folder, resume=16 if length == 4 else None)
    assert len(reproducible_records(folders[0])) == 3
    assert reproducible_records(folders[0]) == reproducible_records(folders[1]) == reproducible_records(folders[2])
    assert snapshots(folders[0]) == snapshots(folders[1]) == [f"{step:09d}-0.1.npz" for step in (12, 24)]


def test_a_row_that_cannot_be_read_ends_the_run_after_it_is_saved(tmp_path):
    dataset, c = open_dataset("digits"), config(steps=60, log_every=8, save_every=60)
    c.data.name = "digits"
    c = resolve(c)
    x = dataset.arrays().x1
    known = ArrayRows(Batch(x, {"label": np.arange(len(x), dtype=np.int32)}))
    bad = int(Stream(known, c.seed, c.train.batch_size)[20].cond["label"][0])

    class Broken:
        __len__ = known.__len__

        def __getitem__(self, index):
            if index == bad:
                raise DataError(f"row {bad} cannot be read")
            return known[index]

    streamed = dataclasses.replace(dataset, sample=None, arrays=tuple, rows=Broken())
    with pytest.raises(RunFault, match=f"row {bad} cannot be read; saved at step 16, from where the same command"):
        run(Trainer(c, build(c, dataset.spec), streamed), tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [16]


def test_averages_beyond_a_snapshots_numbers_are_the_runs_end(tmp_path):
    outputs = RunOutputs(tmp_path, Checkpoints(tmp_path / "checkpoints"))
    c = config(steps=4, log_every=2, save_every=4)
    c.ema.widths = (0.1,)
    averaging = assemble(c)
    state = averaging.init()
    biases = jax.tree.map(lambda a: jnp.full_like(a, 7e4) if a.ndim == 1 else a, state.params)
    large = dataclasses.replace(state, params=biases)
    with pytest.raises(RunFault, match=r"beyond float16; no checkpoint had been saved yet; try a lower train\.lr"):
        train(averaging, outputs, large)
    assert outputs.checkpoints.steps() == []


def terminated(*, handled):
    with loop._signals() as caught:
        signal.raise_signal(signal.SIGTERM)
        assert caught == [signal.SIGTERM]
        if handled:
            raise loop.Preempted(signal.SIGTERM, 3)


def test_a_signal_that_comes_when_all_is_done_is_not_lost():
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # as the command line does
    try:
        with pytest.raises(SystemExit, match="143"):
            terminated(handled=False)
        with pytest.raises(loop.Preempted):
            terminated(handled=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_all_is_closed_though_closing_one_fails(tmp_path, trainer):
    """If the trace cannot be written, the records and checkpoints are still closed, and one line names the disk."""
    closed = []

    class Failing(Trace):
        def close(self, step):
            raise OSError(errno.ENOSPC, "No space left on device")

    class Recording(RunOutputs):
        def close(self):
            super().close()
            closed.append(self.workdir)

    outputs = Recording(tmp_path, Checkpoints(tmp_path / "checkpoints"))
    with pytest.raises(RunFault, match=f"cannot write to {tmp_path}: No space left on device"):
        train(trainer, outputs, trainer.init(), Failing(tmp_path / "trace"))
    assert closed == [tmp_path]
    assert outputs.checkpoints.steps() == [20, 40, 60]


@dataclasses.dataclass(frozen=True)
class Distilled(MethodDefaults):
    """A network that imitates its teacher, and an average of itself; the loss of step n is multiplied by n + 1."""

    network: Network
    prior: Any
    from_config = print  # it comes from no config
    metrics = ("of_target",)
    targets = {"slow": 1000.0}  # noqa: RUF012

    def loss(self, params, context, key, batch):
        t = jnp.full(batch.x1.shape[0], 0.5)
        apply = lambda p: self.network(p, context, t, batch.x1)[0]
        target = jnp.mean((apply(params) - apply(context.targets["slow"])) ** 2)
        value = jnp.mean((apply(params) - apply(context.teacher)) ** 2) * (1 + context.step)
        return Loss(value, {"of_target": target}, context.state)

    def model(self, params, state):
        return self.network.bind(params, state)


def test_a_teacher_and_targets_reach_training_and_validation():
    """They are arguments of the compiled programs: another teacher of the same shapes compiles nothing."""
    c, dataset = resolve(config(steps=20, warmup=0.0)), open_dataset("gaussians8")
    plain: Any = build(c, dataset.spec)
    method = Distilled(plain.network, plain.prior)
    initial = plain.init(jax.random.key(1)).params
    teachers = [jax.tree.map(lambda p, k=k: p + 0.1 * k, initial) for k in (1, 2)]
    trainer = Trainer(c, method, dataset, teacher=teachers[0])
    losses = {}
    for i, teacher in enumerate(teachers):
        trainer.teacher = teacher
        before = trainer.init()
        losses[i] = trainer.val_loss(before)
        state, metrics = trainer.run(before, trainer.arrays(), 3)
        losses[i, "run"] = float(metrics.loss)
        assert float(metrics.values["of_target"]) > 0  # the average follows the parameters
        later = dataclasses.replace(state, ema=trainer.init().ema)
        assert trainer.val_loss(later) == pytest.approx(4 * losses[i], rel=1e-5)  # step 3
    assert losses[0] != losses[1]
    assert losses[0, "run"] != losses[1, "run"]
    # 0 if JAX has dropped the program from its cache of recent ones, which all programs of this process share
    assert max(trainer._run.jitted._cache_size(), trainer._val.jitted._cache_size()) <= 1
