"""Scores of images, reference statistics and their cache, the command: with a cheap network in Inception's place."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from flowjax import load, metrics
from flowjax.archives import write_npz
from flowjax.batch import Batch
from flowjax.data import DataError, open_dataset
from flowjax.data.dataset import ArrayRows
from flowjax.inference import evaluation
from flowjax.metrics import images, inception, reference
from flowjax.metrics.frechet import between
from flowjax.metrics.moments import Moments

RNG = np.random.default_rng(0)
MAP = RNG.normal(size=(3, 6)).astype(np.float32)


class Cheap:
    """Stands for the Inception network: what the cache knows of it is its checksum."""

    checksum = "cheap"


def features(x):
    """Six mixtures of the channels' means, and three of the first pixel's values."""
    return (x.astype(np.float32).mean((1, 2)) @ MAP / 255).astype(np.float32), x[:, 0, 0].astype(np.float32) / 255


@pytest.fixture
def cheap(monkeypatch, as_users_call):
    """The network replaced wherever it is looked up; gives how many images went through it."""
    seen = []

    def batches(x, batch=0, *, network=None, precision="highest", spatial=False, say=print):
        seen.append(len(x))
        for start in range(0, len(x), 16):
            pooled, first = features(x[start : start + 16])
            yield inception.Features(pooled, first if spatial else None)

    for module in (images, reference):
        monkeypatch.setattr(module, "batches", batches)
    for module in ("flowjax.metrics.images", "flowjax.metrics.reference", "flowjax.inference.evaluation"):
        monkeypatch.setattr(f"{module}.load_inception", lambda path=None: Cheap())
    return seen


def draw(n, shape=(4, 4, 3), low=0, seed=0):
    return np.random.default_rng(seed).integers(low, 256, (n, *shape)).astype(np.uint8)


def test_reference_statistics_are_computed_once(cheap, tmp_path):
    said, x = [], draw(100)
    first = metrics.reference_statistics(x, "toy train", folder=tmp_path, say=said.append)
    assert cheap == [100]
    assert "none stored yet" in said.pop()
    again = metrics.reference_statistics(x, "toy train", folder=tmp_path, say=said.append)
    assert (cheap, said) == ([100], [])
    for got in (first, again):
        np.testing.assert_allclose(got.pooled.cov, np.cov(features(x)[0].astype(float), rowvar=False), rtol=1e-9)
        np.testing.assert_allclose(got.spatial.mean, features(x)[1].mean(0), rtol=1e-6)
        np.testing.assert_array_equal(got.features, features(x)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["reference_toy_train.npz"]
    assert again.provenance == first.provenance
    assert {"images_sha256", "weights_sha256", "resize", "date", "flowjax"} <= set(again.provenance)


def test_reference_statistics_of_another_provenance_are_computed_anew(cheap, tmp_path, monkeypatch):
    said = []
    call = lambda x, **more: metrics.reference_statistics(x, "toy", folder=tmp_path, say=said.append, **more)
    call(draw(20))
    changed = draw(20)
    changed[3, 1, 1, 1] ^= 1  # one bit
    found = call(changed)
    assert "differ in images_sha256" in said[-1]
    np.testing.assert_allclose(found.pooled.mean, features(changed)[0].mean(0), rtol=1e-6)
    call(changed, precision="default")
    assert "differ in precision" in said[-1]
    monkeypatch.setattr(Cheap, "checksum", "other")
    call(changed, precision="default")
    assert "differ in weights_sha256" in said[-1]
    (tmp_path / "reference_toy.npz").write_bytes(b"cut short")
    call(changed, precision="default")
    assert "cannot be read" in said[-1]
    assert cheap == [20] * 5
    with pytest.raises(ValueError, match="at least two images"):
        call(changed[:1])


def test_reference_keeps_a_fixed_part_of_many_images(cheap, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "KEPT", 30)
    x = draw(9000, (2, 2, 3))
    found = metrics.reference_statistics(x, "many", folder=tmp_path, say=lambda line: None)
    rows = np.sort(np.random.default_rng(0).choice(9000, 30, replace=False))
    np.testing.assert_array_equal(found.features, features(x)[0][rows])
    np.testing.assert_allclose(found.pooled.cov, np.cov(features(x)[0].astype(float), rowvar=False), rtol=1e-9)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_npz(tmp_path / "new" / "a.npz", {"x": np.arange(3)})
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "a.npz")["x"], [0, 1, 2])

    def fails(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="No space"):
        write_npz(tmp_path / "new" / "a.npz", {"x": np.zeros(3)})
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "a.npz")["x"], [0, 1, 2])


def test_scores_are_those_of_the_parts(cheap, tmp_path):
    said, data, x = [], draw(400), draw(300, low=60, seed=1)
    held = metrics.reference_statistics(data, "toy", folder=tmp_path, say=said.append)
    found = metrics.score_images(x, held, say=said.append)
    pooled, spatial = features(x)
    assert set(found) == {"fid", "fid_bias", "sfid", "sfid_bias", "kid", "kid_stderr", "precision", "recall"}
    assert found["fid"] == pytest.approx(between(Moments.of(pooled), held.pooled), rel=1e-9)
    assert found["sfid"] == pytest.approx(between(Moments.of(spatial), held.spatial), rel=1e-9)
    assert found["kid"] == metrics.kernel_distance(pooled, held.features).value
    assert (found["precision"], found["recall"]) == metrics.precision_recall(held.features, pooled)
    assert [line for line in said if "fid of 300 images" in line and "50000" in line]
    assert set(metrics.score_images(x, held, ["recall"], say=said.append)) == {"recall"}


def test_a_metric_from_outside_gets_the_features(cheap, tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(
        "def gap(samples, reference, power: int = 1):\n    return (samples.mean() - reference.mean()) ** power\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data, x = draw(40), draw(30, low=60, seed=1)
    held = metrics.reference_statistics(data, "toy", folder=tmp_path, say=lambda line: None)
    found = metrics.score_images(x, held, ["own_metrics:gap(2)"], say=lambda line: None)
    gap = features(x)[0].mean() - held.features.mean()
    assert found == {"own_metrics:gap(2)": pytest.approx(gap**2)}
    for name, message in (("own_metrics:gone", "has no gone"), ("os:system", "is defined in posix, which")):
        with pytest.raises(ValueError, match=message):
            images.check_names([name])


def test_few_images_for_the_dimension_are_said_aloud(cheap, tmp_path):
    said = []
    held = metrics.reference_statistics(draw(50), "toy", folder=tmp_path, say=said.append)
    bias = metrics.score_images(draw(5, seed=2), held, ["fid"], say=said.append)["fid_bias"]
    assert "fewer than its 6 dimensions" in said[-1]
    assert f"more than {bias:.3g}" in said[-1]
    assert "\n" not in said[-1]


def test_grey_images_are_repeated_with_a_note(cheap, tmp_path):
    said, x = [], draw(40, (4, 4, 1))
    held = metrics.reference_statistics(np.repeat(x, 3, -1), "grey", folder=tmp_path, say=said.append)
    assert metrics.score_images(x, held, ["fid"], say=said.append)["fid"] == pytest.approx(0.0, abs=1e-9)
    assert [line for line in said if "repeated to three" in line]
    with pytest.raises(ValueError, match="1 or 3 channels"):
        images.as_rgb(draw(2, (4, 4, 4)))


def test_scores_refuse_what_cannot_be_meant(cheap, tmp_path):
    held = metrics.reference_statistics(draw(20), "toy", folder=tmp_path, say=lambda line: None)
    with pytest.raises(ValueError, match="unknown metric 'inception_score'"):
        metrics.score_images(draw(8), held, ["inception_score"])
    with pytest.raises(ValueError, match="at least 4"):
        metrics.score_images(draw(3), held)
    with pytest.raises(ValueError, match="another precision"):
        metrics.score_images(draw(8), held, precision="default")


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    """The workdir of a run on 60 random images, two steps long, and the file of the images."""
    from flowjax.cli.main import main

    folder = tmp_path_factory.mktemp("images")
    np.savez(folder / "mine.npz", x=draw(60), x_test=draw(20, seed=3))
    small = ["model.width=8", "model.depth=1", "train.steps=2", "train.batch_size=8", "train.log_every=1"]
    small += ["train.save_every=2", f"data.path={folder}/mine.npz", "data.name=npz"]
    argv = ["train", "--config=gaussians8", f"--workdir={folder}/run", *(f"--config.{key}" for key in small)]
    assert main(argv) == 0
    return folder / "run"


def test_the_command_scores_samples(flowjax, image_run, cheap, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    workdir = f"--workdir={image_run}"
    drawing = ("--num=24", "--solver=ddim", "--steps=3", "--seed=5")
    code, result, err = flowjax("evaluate", workdir, "--metrics=fid,kid,precision", *drawing)
    assert (code, result["num"], result["nfe"]) == (0, 24, 3)
    assert {"fid", "fid_bias", "kid", "kid_stderr", "precision"} <= set(result)
    assert "too large by about" in err
    assert (tmp_path / "reference_npz_mine_train.npz").exists()
    assert flowjax("sample", workdir, f"--out={tmp_path}/s.npz", *drawing)[0] == 0
    kept = ("--metrics=fid", f"--samples={tmp_path}/s.npz")
    assert flowjax("evaluate", workdir, *kept)[1]["fid"] == pytest.approx(result["fid"], rel=1e-6)
    code, other, _ = flowjax("evaluate", workdir, *kept, "--split=test")
    held = Moments.of(features(draw(20, seed=3))[0])
    assert other["fid"] == pytest.approx(
        between(Moments.of(features(np.load(tmp_path / "s.npz")["samples"])[0]), held), rel=1e-6
    )
    assert cheap == [60, 24, 24, 20, 24]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--num=9"], "--num has a meaning only together with --metrics"),
        (["--guidance=cfg"], "--guidance has a meaning only"),
        (["--metrics=fod"], "unknown metric 'fod'"),
        (["--metrics=fid", "--samples=none.npz"], "no such file: none.npz"),
        (["--metrics=fid", "--samples=x.npz", "--num=9"], "--num and --samples cannot be used together"),
        (["--metrics=fid", "--split=val"], "--split"),
        (["--metrics=fid", "--num=8", "--steps=2", "--solver=rk4"], r"convert_inception.py"),
    ],
)
def test_the_command_refuses_in_one_line(flowjax, image_run, tmp_path, monkeypatch, argv, line):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    code, result, err = flowjax("evaluate", f"--workdir={image_run}", *argv)
    assert (code, result) == (2, None)
    assert line in err.splitlines()[-1]


def test_points_have_no_fid(as_users_call):
    known = open_dataset("gaussians8")
    with pytest.raises(DataError, match=r"fid needs 8-bit images .* gaussians8 holds no 8-bit images of shape \(2,\)"):
        evaluation.evaluate_images(SimpleNamespace(spec=known.spec), known, ["fid"])
    known = open_dataset("digits")
    with pytest.raises(DataError, match="digits holds images of 17 levels"):
        evaluation.evaluate_images(SimpleNamespace(spec=known.spec), known)


def test_the_command_needs_a_resident_set(image_run):
    run = load(image_run)
    known = open_dataset("npz", run.config.data.path)
    streamed = dataclasses.replace(known, arrays=tuple, sample=None, rows=ArrayRows(Batch(np.zeros((2, 2)))))
    with pytest.raises(DataError, match="FLOWJAX_RESIDENT_BYTES"):
        evaluation.evaluate_images(run, streamed)
    with pytest.raises(DataError, match=r"samples must be \(N, 4, 4, 3\) uint8"):
        evaluation.evaluate_images(run, known, samples=np.zeros((9, 4, 4, 3)))
