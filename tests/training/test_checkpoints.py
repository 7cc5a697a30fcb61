"""Checkpoints with missing files and flipped bits. The state is a few small arrays instead of a network."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import checksums, files
from flowjax.training.checkpoints import CheckpointError, Checkpoints
from flowjax.training.state import TrainState


def state(step):
    params = {"w": jax.random.normal(jax.random.key(step), (40, 30)), "b": jnp.arange(5.0)}
    return TrainState(jnp.asarray(step), params, {}, (), params, (), {}, jax.random.key(0))


def like(saved):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), saved)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints at steps 10 and 20, into which tests must not write."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    saver = Checkpoints(folder).saver(3, 0)
    for step, loss in ((10, 1.5), (20, 2.5)):
        saver.save(state(step), loss)
    saver.close()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def paths(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_a_flipped_bit_is_found_or_changes_nothing(saved, copied):
    """Bits at 60 random positions in the files of a checkpoint are flipped; the error names the previous checkpoint."""
    rng, found = np.random.default_rng(0), paths(copied / "20")
    ends = np.cumsum([path.stat().st_size for path in found])
    lines = []
    for bit in rng.integers(0, 8 * ends[-1], 60):
        index = int(np.searchsorted(ends, bit // 8, side="right"))
        path, whole = found[index], found[index].read_bytes()
        broken = bytearray(whole)
        broken[bit // 8 - (ends[index] - len(whole))] ^= 1 << (bit % 8)
        path.write_bytes(broken)
        checkpoints = Checkpoints(copied)
        try:
            again = checkpoints.restore(20, like(state(20)))
        except CheckpointError as error:
            lines.append(str(error))
        else:
            assert not path.is_relative_to(copied / "20" / "default")
            for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(state(20).params), strict=True):
                np.testing.assert_array_equal(a, b)
            assert checkpoints.val_loss(20) in (None, 2.5)
        path.write_bytes(whole)
    assert len(lines) > 50
    assert all(line.endswith("the one before it is 10: add --checkpoint 10") and "\n" not in line for line in lines)
    assert Checkpoints(copied).val_loss(20) == 2.5


def test_a_damaged_validation_loss_is_ignored(copied):
    metrics = copied / "20" / "metrics" / "metrics"
    metrics.write_text(json.dumps({"val_loss": 0.5}))
    checkpoints = Checkpoints(copied)
    assert (checkpoints.val_loss(20), checkpoints.choose("best")) == (None, 10)
    checkpoints.saver(3, 0).close()  # Orbax reads them all
    assert checkpoints.choose("best") == 10


def test_a_checkpoint_that_lacks_any_of_its_files_does_not_count(copied):
    """A process that is killed while it prunes can leave any of the files."""
    found = [path for path in paths(copied / "20") if path.name != "commit_success.txt"]  # which nothing reads
    assert len(found) > 8
    checkpoints = Checkpoints(copied)
    for path in found:
        whole = path.read_bytes()
        path.unlink()
        assert checkpoints.steps() == [10], path
        path.write_bytes(whole)
    assert checkpoints.steps() == [10, 20]


def test_incomplete_checkpoints_are_cleared_away(copied, tmp_path):
    for name in ("99999", "040", "٣", "40.orbax-checkpoint-tmp"):
        (copied / name).mkdir()
    (copied / "50").write_text("a file")
    (copied / "20" / "_CHECKPOINT_METADATA").unlink()
    checkpoints = Checkpoints(copied)
    assert checkpoints.steps() == [10]
    lines = checkpoints.clean(tmp_path / "set_aside")
    assert len(lines) == 2
    assert [path.name[:3] for path in (tmp_path / "set_aside").iterdir()] == ["20-"]
    assert checkpoints.steps() == [10]
    assert not (copied / "99999").exists()
    assert sorted(path.name for path in copied.iterdir()) == sorted(["040", "10", "50", "٣"])


def test_a_folder_without_checksums_is_not_a_checkpoint(copied):
    (copied / "20" / checksums.NAME).unlink()
    assert Checkpoints(copied).steps() == [10]


def test_large_files_have_a_checksum_for_each_block(tmp_path, monkeypatch):
    """A change in any block, in the last byte or of the length is found, and processes divide the blocks."""
    monkeypatch.setattr(checksums, "_BLOCK", 1000)
    monkeypatch.setattr(checksums, "_PIECE", 300)
    (tmp_path / "in").mkdir()
    data = np.random.default_rng(0).bytes(2500)
    (tmp_path / "in" / "a").write_bytes(data)
    (tmp_path / "in" / "empty").write_bytes(b"")
    checksums.write(tmp_path, ["in"])
    entries = checksums.read(tmp_path)
    assert [(size, len(crcs)) for size, crcs in entries.values()] == [(2500, 3), (0, 0)]
    assert checksums.differing(tmp_path, entries) is None
    for changed in (data[:-1] + b"?", data + b"?", data[:1500] + b"?" + data[1501:], data[:1000]):
        (tmp_path / "in" / "a").write_bytes(changed)
        assert checksums.differing(tmp_path, entries) == 0
    (tmp_path / "in" / "a").write_bytes(data[:1500] + b"?" + data[1501:])
    assert [checksums.differing(tmp_path, entries, index, 3) for index in range(3)] == [None, 0, None]


def test_unfinished_files_are_removed_by_name(tmp_path):
    for name in (".a.npz.17.part", ".b.json.17.part", "a.npz", "17.part"):
        (tmp_path / name).write_text("")
    files.remove_unfinished(tmp_path, "a.npz")
    files.remove_unfinished(tmp_path / "missing")
    assert len(list(tmp_path.iterdir())) == 3
    files.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["17.part", "a.npz"]
