"""What a study keeps of a training that it times."""

import time

from flowjax.config import defaults
from flowjax.data import DataSpec
from flowjax.inference import Run
from flowjax.reproduce import Study, file_name, study


def test_the_seconds_of_a_training_are_those_of_all_its_steps_and_are_kept(tmp_path, monkeypatch):
    """A stand-in for a training takes 0.05 s of the processor, if it is not finished, and its changes 0.05 s too."""
    run = Run(tmp_path, defaults(), 0, DataSpec("npz", (1,)), None, {})
    folder, seconds = tmp_path / "runs" / "a", tmp_path / "arrays" / "seconds_a.npz"
    folder.mkdir(parents=True)
    (folder / "part").touch()  # of a training that was interrupted

    def work():
        start = time.process_time()
        while time.process_time() - start < 0.05:
            pass

    def train(config, workdir, changes, plots):
        assert (config, workdir, changes) == ("config", folder, {"seed": 1})
        if not (workdir / "finished").exists():
            assert not workdir.exists()
            work()
            workdir.mkdir()
            (workdir / "finished").touch()
        return run

    def changes():
        if not (folder / "finished").exists():
            work()
        return {"seed": 1}

    monkeypatch.setattr(study, "train", train)
    timed = lambda: Study(tmp_path, False, range(1)).timed("a", "config", changes)
    first = timed()
    assert first.run is run
    assert timed().seconds == first.seconds
    assert first.seconds >= 0.1
    seconds.unlink()  # the process ended after the training and before its seconds were kept
    assert timed().seconds >= 0.1


def test_a_file_name_has_no_spaces_and_commas():
    assert file_name("moons", "half flow matching, then CNF", 0) == "moons_half_flow_matching_then_CNF_0"
