"""What a study keeps of a training that it times."""

import time

from flowjax.reproduce import Study


def test_the_seconds_of_a_training_are_those_of_all_its_steps_and_are_kept(tmp_path):
    """A stand-in for a training takes 0.05 s of the processor, if it is not finished."""
    study = Study(tmp_path, False, range(1))
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "part").touch()  # of a training that was interrupted

    def make():
        if not (folder / "finished").exists():
            assert not folder.exists()
            start = time.process_time()
            while time.process_time() - start < 0.05:
                pass
            folder.mkdir()
            (folder / "finished").touch()
        return "run"

    first, again = study.timed("a", make), study.timed("a", make)
    assert again == first
    assert first.run == "run"
    assert first.seconds >= 0.05
    (
        tmp_path / "arrays" / "seconds_a.npz"
    ).unlink()  # it was killed after the training and before the seconds were kept
    assert study.timed("a", make).seconds >= 0.05
