"""Sampling in batches: one compilation, devices that never wait for the host, bitwise equal samples, kept batches."""

import dataclasses
import json
import logging
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import load, oracles
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.data import Affine, DataSpec
from flowjax.errors import ConfigError
from flowjax.inference import batches, finished_batches, log_prob, program, sample, sampling, scoring
from flowjax.inference.batches import SolverFault
from flowjax.inference.choose import Guide, SolverSettings, choose
from flowjax.inference.finished_batches import FinishedBatches
from flowjax.inference.program import Inputs, labels_of
from flowjax.inference.run import Run
from flowjax.methods import Network
from flowjax.models.functional import Variables
from flowjax.paths import AffinePath, GaussianPath
from flowjax.schedules import VP, CondOT
from flowjax.solvers import Stats

HEUN = SolverSettings("heun", steps=3)


@pytest.fixture(scope="module")
def run(tiny_run):
    return load(tiny_run)


@pytest.fixture
def compiled(caplog):
    """The names of the programs that are compiled."""
    with caplog.at_level(logging.WARNING, logger="jax"), jax.log_compiles():
        yield lambda: [r.getMessage().split()[1] for r in caplog.records if r.getMessage().startswith("Compiling ")]


def test_one_compilation_for_all_batches_and_none_for_another_call(run, compiled):
    program._compiled.cache_clear()
    first = sampling.sample(run, 70, 0, HEUN, batch=32)
    assert compiled().count("jit(draw)") == 1
    seen = len(compiled())
    again = sampling.sample(run, 70, 0, SolverSettings("heun", steps=3), batch=32)
    assert compiled()[seen:] == []  # nothing at all
    np.testing.assert_array_equal(first.samples, again.samples)
    other = dataclasses.replace(run, params=jax.tree.map(lambda a: 2 * a, run.params))
    sampling.sample(run, 40, 1, HEUN, batch=32)
    assert not np.array_equal(sampling.sample(other, 70, 0, HEUN, batch=32).samples, first.samples)
    assert "jit(draw)" not in compiled()[seen:]
    sampling.sample(run, 40, 0, SolverSettings("heun", steps=4), batch=32)
    assert compiled()[seen:].count("jit(draw)") == 1


def test_the_weaker_network_is_an_argument(run, compiled):
    """weak + 0 (strong - weak) is the weak network: two weak networks give different samples by the same program."""
    program._compiled.cache_clear()
    weak = dataclasses.replace(run, params=jax.tree.map(lambda a: 0.5 * a, run.params))
    drawn = [sampling.sample(run, 8, 0, HEUN, guide=Guide("auto", 0.0, weak=w)).samples for w in (weak, run)]
    assert compiled().count("jit(draw)") == 1
    np.testing.assert_allclose(drawn[0], sampling.sample(weak, 8, 0, HEUN).samples, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(drawn[1], sampling.sample(run, 8, 0, HEUN).samples, rtol=1e-5, atol=1e-4)
    other = dataclasses.replace(run, method=dataclasses.replace(run.method, path=GaussianPath(VP())))
    with pytest.raises(ConfigError, match="--weak is a run of another path: guidance 'auto' needs the same"):
        sampling.sample(run, 8, 0, HEUN, guide=Guide("auto", 0.0, weak=other))


def test_variables_of_another_checkpoint_are_arguments_of_the_same_program(compiled):
    """The velocity is a variable that is not a parameter: x1 = x0 + shift, exact up to float32's rounding."""
    program._compiled.cache_clear()
    spec, config = DataSpec("npz", (2,), Affine(1.0, 0.0)), defaults("mlp")
    network = Network(
        init=lambda key: Variables({}, {"shift": jnp.zeros(())}),
        apply=lambda variables, t, x, cond, training=False: (variables.state["shift"] + 0 * x, variables.state),
    )
    method = dataclasses.replace(build(config, spec), network=network)
    none, one, four = (
        Run(Path("run"), config, step, spec, method, {}, {"shift": jnp.asarray(float(step))}) for step in (0, 1, 4)
    )
    source, first, second = (sampling.sample(run, 8, 0, HEUN, batch=8).samples for run in (none, one, four))
    assert compiled().count("jit(draw)") == 1
    np.testing.assert_allclose(first, source + 1, atol=1e-5)
    np.testing.assert_allclose(second, source + 4, atol=1e-5)
    guided = [sampling.sample(four, 8, 0, HEUN, batch=8, guide=Guide("auto", 3.0, weak=weak)) for weak in (none, one)]
    assert compiled().count("jit(draw)") == 2  # one for sampling with guidance
    np.testing.assert_allclose(guided[0].samples, source + 3 * 4, atol=1e-5)
    np.testing.assert_allclose(guided[1].samples, source + 1 + 3 * (4 - 1), atol=1e-5)


def test_runs_with_other_shares_of_classes_have_other_programs(compiled):
    """The velocity is the label: x1 = x0 + label, exact up to float32's rounding. Shares are constants of a program."""
    program._compiled.cache_clear()
    config = defaults("mlp")
    config.data.name, config.data.cond = "npz", ("label",)
    spec = dataclasses.replace(UNEVEN, normalise=Affine(1.0, 0.0))
    network = Network.from_function(lambda params, t, x, cond: cond["label"][:, None] + 0 * x)
    method = dataclasses.replace(build(config, spec), network=network)
    odd = Run(Path("run"), config, 0, spec, method, {})
    even = odd.with_class_shares((0.5, 0.0, 0.5, 0.0))
    draw = lambda run, labels: sampling.sample(run, 64, 0, HEUN, batch=64, labels=labels)
    source = sampling.sample(odd, 64, 0, HEUN, batch=64, label=0).samples
    for labels in ("shares", "random", "balanced"):
        before = compiled().count("jit(draw)")
        for run, classes in ((odd, {1, 3}), (even, {0, 2}), (odd, {1, 3})):
            drawn = draw(run, labels)
            assert set(drawn.labels.tolist()) == classes
            np.testing.assert_allclose(drawn.samples, source + drawn.labels[:, None], atol=1e-5)
        assert compiled().count("jit(draw)") == before + 2


def test_a_weaker_network_may_have_seen_other_shares_of_classes():
    config = defaults("mlp")
    config.data.name, config.data.cond = "npz", ("label",)
    specs = UNEVEN, dataclasses.replace(UNEVEN, class_shares=()), DataSpec("npz", (1,), Affine(2.0, 1.0), 5)
    now, before, other = (Run(Path("run"), config, 0, spec, build(config, spec), {}) for spec in specs)
    choose(now, HEUN, Guide("auto", 2.0, weak=before))
    with pytest.raises(ConfigError, match="--weak is a run of another data"):
        choose(now, HEUN, Guide("auto", 2.0, weak=other))


def test_programs_hold_no_parameters(run):
    kept = []
    for guide in (None, Guide("auto", 2.0, weak=run)):
        choice, again = choose(run, HEUN, guide), choose(dataclasses.replace(run), HEUN, guide)
        made = [
            program.Program((c.identity,), dataclasses.replace(c, arrays=None), "none", None) for c in (choice, again)
        ]
        kept += [program._compiled(p) for p in made]
        assert kept[-1] is kept[-2]
        bare = kept[-1].__wrapped__.__self__.choice
        assert bare.arrays is None
        assert bare.run.arrays == (None, None)
        assert guide is None or bare.guide.weak.arrays == (None, None)
    assert kept[0] is not kept[2]


class Slow:
    """Stands for an array on a device: logs when it is fetched."""

    def __init__(self, log, start, n):
        self.log, self.start, self.n = log, start, n

    def copy_to_host_async(self):
        pass

    def __array__(self, dtype=None, copy=None):
        self.log.append(f"fetch {self.start}")
        return np.arange(self.start, self.start + self.n)


def test_a_block_is_dispatched_before_the_last_is_fetched():
    log, stats = [], Stats(jnp.full(4, 3), jnp.ones(4, bool))

    def f(rows):
        assert len(rows) == 4
        log.append(f"dispatch {rows[0]}")
        return {"x": Slow(log, int(rows[0]), 4)}, stats

    found = batches.in_batches(f, (np.arange(14),), 4, solver="euler", label="test")
    assert log == [
        *("dispatch 0", "dispatch 4", "fetch 0", "dispatch 8", "fetch 4", "dispatch 12", "fetch 8", "fetch 12")
    ]
    np.testing.assert_array_equal(found.values["x"], np.arange(14))
    np.testing.assert_array_equal(found.values["nfe"], np.full(14, 3))
    assert found.rate > 0
    assert batches.in_batches(f, (np.arange(3),), 4, solver="euler", label="test").rate is None


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(batches, "_QUIET", -1.0)
    f = lambda rows: ({"x": jnp.asarray(rows)}, Stats(jnp.full(4, 3), jnp.ones(4, bool)))
    batches.in_batches(f, (np.arange(6),), 4, solver="euler", label="sample", unit="image", show=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["sample 4/6", "sample 6/6"]
    assert all("images_per_second" in line for line in lines)


def test_rows_that_did_not_arrive_are_counted_without_the_padding():
    f = lambda rows: ({"x": jnp.asarray(rows)}, Stats(jnp.full(4, 3), jnp.zeros(4, bool)))
    with pytest.raises(SolverFault, match="for 3 of 3 rows"):
        batches.in_batches(f, (np.arange(3),), 4, solver="dopri5", label="test")


@pytest.mark.parametrize("spec", [(256, 127.5, 127.5), (17, 8.0, 8.0), (2, 0.5, 0.5), (256, 66.7, 120.1)])
def test_levels_on_the_device_are_those_of_numpy(spec):
    """Bitwise equal at every threshold and its neighbouring floats, at random points, and beyond the ends."""
    count, scale, shift = spec
    data = DataSpec("x", (1,), Affine(scale, shift), 0, count)
    edges = program.level_thresholds(data)
    assert len(edges) == count - 1
    assert (np.diff(edges) > 0).all()
    near = [np.nextafter(edges, np.float32(np.sign(d) * np.inf)) for d in (-1, 1)]
    draws = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    ends = np.array([-np.inf, -1e30, -2, -0.0, 0.0, 2, 1e30, np.inf], np.float32)
    x = np.concatenate([edges, *near, draws, ends])[:, None]
    np.testing.assert_array_equal(program.to_levels(jnp.asarray(edges), jnp.asarray(x)), data.finish(x))
    assert program.to_levels(jnp.asarray(edges), jnp.full((1, 1), jnp.nan)) == 0


def test_levels_of_channels_with_scales_of_their_own():
    """Bitwise equal to NumPy at every threshold of each channel and at random points."""
    data = DataSpec("x", (2, 2), Affine((3.0, 70.0), (1.5, 128.0)), 0, 256)
    edges = program.level_thresholds(data)
    assert edges.shape == (255, 2)
    draws = np.random.default_rng(0).normal(size=(1000, 2, 2)).astype(np.float32)
    x = np.concatenate([np.stack([edges, edges], 1), np.nextafter(np.stack([edges, edges], 1), np.float32(-9)), draws])
    np.testing.assert_array_equal(program.to_levels(jnp.asarray(edges), jnp.asarray(x)), data.finish(x))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("backend", "shape", "rows"),
    [
        ("cpu", (2,), 4096),
        ("cpu", (32, 32, 3), 16),  # 2^21 / (64 * 3072) = 10.7
        ("gpu", (2,), 4096),
        ("gpu", (28, 28, 1), 2048),  # 2^27 / (64 * 784) = 2675
        ("gpu", (32, 32, 3), 512),  # 683
        ("tpu", (64, 64, 3), 128),  # 171
        ("gpu", (256, 256, 3), 64),  # 10.7
    ],
)
def test_default_batch(monkeypatch, backend, shape, rows):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert batches.default_batch(math.prod(shape)) == rows


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch, blocks):
    """Lets the write of the next block after `blocks` blocks fail, as if the process had been killed there."""
    write, count = FinishedBatches.write, []

    def dying(self, start, block):
        if len(count) == blocks:
            raise Interrupted
        count.append(start)
        write(self, start, block)

    monkeypatch.setattr(FinishedBatches, "write", dying)


@pytest.mark.parametrize("solver", [HEUN, SolverSettings(rtol=1e-3, atol=1e-3), SolverSettings("ddpm", steps=4)])
def test_an_interrupted_call_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, capsys, solver):
    call = lambda **more: sampling.sample(run, 70, 0, solver, batch=16, **more)
    keep = tmp_path / "s.npz.parts"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interrupted):
            call(keep=keep)
    assert sorted(p.name for p in keep.glob("*.npz")) == [f"{i:010d}.npz" for i in (0, 16, 32)]
    (keep / "0000000016.npz").write_bytes(b"cut short")
    capsys.readouterr()
    drawn = []
    write = FinishedBatches.write
    monkeypatch.setattr(
        FinishedBatches,
        "write",
        lambda self, start, block: (drawn.append(start), write(self, start, block)),
    )
    resumed = call(keep=keep)
    assert "going on from the 3 finished batches" in capsys.readouterr().err
    assert drawn == [16, 48, 64]
    whole = call()
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    assert resumed.nfe == whole.nfe
    finished_batches.remove_finished(keep)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_another_request_are_refused(run, tmp_path):
    keep = tmp_path / "s.npz.parts"
    call = lambda seed=0, batch=16, num=40, **more: sampling.sample(
        run, num, seed, HEUN, batch=batch, keep=keep, **more
    )
    call()
    for more, text in (
        ({"seed": 1}, "seed is 0 there and 1 here; remove the folder, or take another --out"),
        ({"batch": 8}, "batch is 16 there and 8 here"),
        ({"num": 4}, "num is 40 there and 4 here"),  # a single batch, which keeps none
        ({"guide": Guide("auto", 2.0, weak=run)}, "guidance is None there and auto here"),
    ):
        with pytest.raises(ConfigError, match=text):
            call(**more)
    other = dataclasses.replace(run, params=jax.tree.map(lambda a: a + 1, run.params))
    with pytest.raises(ConfigError, match="another request: parameters is "):
        sampling.sample(other, 40, 0, HEUN, batch=16, keep=keep)
    assert len(list(keep.iterdir())) == 4
    assert json.loads((keep / "request.json").read_text())["solver"] == "heun"


@pytest.mark.parametrize("left", ["nothing", '{"seed": 5}', "5", "{", b"\xff"], ids=str)
def test_a_call_that_failed_before_its_first_batch_does_not_block_the_next(run, tmp_path, monkeypatch, left):
    """It leaves no folder. A folder without batches from an earlier version is used, whatever its request was."""
    keep = tmp_path / "s.npz.parts"
    if left != "nothing":
        keep.mkdir()
        (keep / "request.json").write_bytes(left if isinstance(left, bytes) else left.encode())
        (keep / ".0000000000.npz.17.part").write_text("cut short")
    call = lambda: sampling.sample(run, 40, 0, HEUN, batch=16, keep=keep)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        with pytest.raises(Interrupted):
            call()
    assert list(tmp_path.iterdir()) == []
    call()
    assert sorted(p.name for p in keep.iterdir()) == [*(f"{i:010d}.npz" for i in (0, 16, 32)), "request.json"]
    if left != "nothing":  # the request of the finished batches is not known
        (keep / "request.json").write_bytes(left if isinstance(left, bytes) else left.encode())
        with pytest.raises(ConfigError, match="remove the folder, or take another --out"):
            call()


def test_foreign_files_are_neither_taken_nor_removed(run, tmp_path):
    (tmp_path / "0000000000.npz").write_bytes(b"someone's")
    with pytest.raises(ConfigError, match="other files than finished batches"):
        sampling.sample(run, 40, 0, HEUN, batch=16, keep=tmp_path)
    finished_batches.remove_finished(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_single_batch_keeps_nothing(run, tmp_path):
    sampling.sample(run, 4, 0, HEUN, batch=16, keep=tmp_path / "keep")
    assert list(tmp_path.iterdir()) == []


UNEVEN = DataSpec("npz", (1,), Affine(2.0, 1.0), 4, class_shares=(0.0, 0.9, 0.0, 0.1))


def test_labels_are_only_of_classes_that_the_data_have():
    """With 20,000 draws the tolerance is 4 standard deviations sqrt(p (1 - p) / 20,000): 0.0085 for a share of 0.9 and
    0.014 for 0.5.
    """
    inputs = Inputs(None, None, *jax.random.split(jax.random.key(0), 3), jnp.asarray(3))
    drawn = lambda kind, spec=UNEVEN: np.asarray(labels_of(kind, spec, inputs, jnp.arange(20_000)))
    assert drawn("balanced")[:4].tolist() == [1, 3, 1, 3]
    for kind, share, tolerance in (("shares", 0.9, 0.0085), ("random", 0.5, 0.0142)):
        found = np.bincount(drawn(kind), minlength=4) / 20_000
        assert found[[0, 2]].tolist() == [0, 0]
        assert found[1] == pytest.approx(share, abs=tolerance)
    unknown = dataclasses.replace(UNEVEN, class_shares=())
    assert set(drawn("shares", unknown)) == {0, 1, 2, 3}


def test_a_density_without_labels_is_the_sum_over_classes_where_the_network_always_had_labels():
    """Two normal classes with shares 0.9 and 0.1, means -2 and 2 and standard deviation 0.5 in model space, scale 2 and
    shift 1, in closed form: log(0.9 N(x; -3, 1) + 0.1 N(x; 5, 1)) in data space. Adaptive steps at a tolerance of 1e-6
    leave an error below 1e-4. Both classes share one program: the network is traced as often as for known labels.
    """
    traced = []
    path = AffinePath(CondOT())
    one, three = (oracles.gaussian(path, mean=m, std=0.5) for m in (-2.0, 2.0))

    def velocity(params, t, x, cond):
        traced.append(cond)
        return jnp.where((cond["label"] == 1)[:, None], one.velocity(t, x), three.velocity(t, x))

    config = defaults("mlp")
    config.data.name, config.data.cond, config.data.cond_dropout = "npz", ("label",), 0.0
    method = dataclasses.replace(build(config, UNEVEN), network=Network.from_function(velocity))
    run = Run(Path("run"), config, 0, UNEVEN, method, {})
    x = np.array([[-4.0], [-2.5], [1.0], [4.0], [6.0]], np.float32)
    fine = SolverSettings(rtol=1e-6, atol=1e-6)
    scored = scoring.log_prob(run, x, solver=fine, batch=8)
    once = len(traced)
    scoring.log_prob(run, x, {"label": np.ones(5, np.int32)}, solver=fine, batch=8)
    assert len(traced) == 2 * once
    normal = lambda mean: np.exp(-0.5 * (x[:, 0].astype(np.float64) - mean) ** 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(scored.log_prob, np.log(0.9 * normal(-3) + 0.1 * normal(5)), atol=1e-4)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_jax_would_reduce_modulo_2_to_the_32_are_refused(run, seed):
    with pytest.raises(ConfigError, match=rf"seed must be in \[0, 4294967295\], not {seed}"):
        sampling.sample(run, 2, seed)
    with pytest.raises(ConfigError, match="seed must be in"):
        scoring.log_prob(run, np.zeros((2, 2), np.float32), seed=seed)


def test_a_grid_is_learned_for_samplers_that_denoise_at_the_end(run):
    """They have one time fewer than other samplers with as many steps; N steps take N evaluations."""
    drawn = sampling.sample(run, 4, 0, SolverSettings("unipc", steps=3, grid="learned"), batch=4)
    assert drawn.nfe == 3
    assert np.isfinite(drawn.samples).all()


def test_options_are_checked_against_the_default_solver_before_anything_compiles(run):
    """The solver of the method is dopri5, which takes neither eta nor a grid."""
    with pytest.raises(ConfigError, match="dopri5 does not accept eta"):
        choose(run, SolverSettings(eta=0.5))


def of_method(name, **keys):
    """A run of a method on labelled points, which is not trained."""
    config = changed(defaults("mlp", name), {"data.name": "npz", "data.cond": ("label",), **keys})
    method = build(config, UNEVEN)
    return Run(Path("run"), config, 0, UNEVEN, method, method.init(jax.random.key(0)).params)


@pytest.mark.parametrize("name", ["flow_map", "consistency"])
def test_guidance_that_is_learned_in_training_is_not_given_when_sampling(name):
    with pytest.raises(ConfigError, match=r"it learns guidance in training: set method\.guidance when"):
        choose(of_method(name), guide=Guide("cfg", 2.0))


def test_a_default_solver_with_several_evaluations_a_step_says_so(run, capsys):
    choose(run, SolverSettings(steps=1), show=True)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "steps=1 of dopri5, the default solver of this run, takes 6 evaluations of the network; the "
        "solver euler takes 1"
    )
    for solver in (SolverSettings(), SolverSettings("dopri5", steps=1), HEUN):
        choose(run, solver, show=True)
    assert capsys.readouterr().err == ""


def test_steps_for_which_the_network_was_not_trained_are_warned_about(capsys):
    shortcut = of_method("shortcut", **{"method.levels": 2})
    student = of_method("progressive_distillation", **{"method.teacher": "runs/a", "method.steps": 4})
    for run, steps in ((shortcut, 1), (shortcut, 4), (student, 4), (student, None)):
        choose(run, SolverSettings(steps=steps), show=True)
    choose(shortcut, SolverSettings("euler", steps=3), show=True)
    assert capsys.readouterr().err == ""
    for run, known in ((shortcut, "1, 2, 4 steps of flow_map"), (student, "4 steps of ddim")):
        choose(run, SolverSettings(steps=3), show=True)
        [line] = capsys.readouterr().err.splitlines()
        assert f"warning: the network was trained for {known}, and steps=3 is an extrapolation" in line


def test_names_of_solvers_are_the_same_in_any_case(tiny_run):
    """Also for the default grid of a run, which belongs to the solver."""
    run = load(tiny_run)
    upper, lower = (run.sample(4, solver=name, steps=4) for name in ("EDM", "edm"))
    np.testing.assert_array_equal(upper, lower)


def test_a_run_samples_and_scores_by_its_methods(tiny_run):
    run = load(tiny_run)
    x = run.sample(6, seed=3, solver="heun", steps=5)
    expected = sample(run, 6, 3, SolverSettings("heun", steps=5))
    np.testing.assert_array_equal(x, expected.samples)
    densities = log_prob(run, x, solver=SolverSettings("heun", steps=5))
    np.testing.assert_array_equal(run.log_prob(x, solver="heun", steps=5), densities.log_prob)
    with pytest.raises(ValueError, match="give steps in the SolverSettings"):
        run.sample(2, solver=SolverSettings("heun"), steps=5)


@pytest.mark.usefixtures("as_users_call")
def test_arguments_that_have_no_meaning_are_refused_in_one_line(tiny_run):
    run = load(tiny_run)
    for options, message in (
        ({"num": 0}, "at least 1, not 0"),
        ({"num": 2.5}, "a whole number"),
        ({"num": 2, "label": 1}, "label must be left out: the network has no classes"),
        ({"num": 2, "labels": "share"}, "did you mean 'shares'"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(run, **options)
    for x in (np.zeros((3, 1), np.float32), np.zeros(2, np.float32)):
        with pytest.raises(ConfigError, match=r"points must have the shape \(N, 2\)"):
            run.log_prob(x)


def test_a_class_that_the_data_do_not_have_is_refused():
    config = defaults("mlp")
    config.data.name, config.data.cond = "npz", ("label",)
    method = build(config, UNEVEN)
    with pytest.raises(ConfigError, match="label must be from 0 to 3, not 9"):
        sample(Run(Path("run"), config, 0, UNEVEN, method, {}), 2, label=9)
