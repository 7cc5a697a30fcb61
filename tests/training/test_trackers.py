"""Trackers, profiler traces and the cost of checkpoints, and that their failures do not stop training."""

import importlib.machinery
import struct
import sys
import time
import types

import pytest

from flowjax.training.checkpoints import Saver
from flowjax.training.writers import TensorBoard, Trackers, read_metrics
from tests.conftest import TINY


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Plotting takes most of the time of a tiny run."""
    monkeypatch.setattr("flowjax.inference.figures.draw_all", lambda *args: None)


def events(folder):
    """All events in a folder in the order in which TensorBoard reads them: files by name, framed records in each."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)  # length, its checksum, the event, its checksum
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def shown(folder):
    """{tag: {step: value}} as TensorBoard shows it: the start of a session at step s drops all values from s on."""
    from tensorboardX.proto.event_pb2 import SessionLog

    kept = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            kept = {tag: {s: v for s, v in of.items() if s < event.step} for tag, of in kept.items()}
        for value in event.summary.value:
            of = kept.setdefault(value.tag, {})
            assert event.step not in of, f"{value.tag} twice at step {event.step}"
            of[event.step] = value.simple_value
    return kept


def test_tensorboard_shows_the_records_once_also_of_a_resumed_run(flowjax, tmp_path):
    """After training to 120 and resuming at 40, the new records of 80 and 120 replace the old ones."""
    argv = [*TINY, f"--workdir={tmp_path}/run", "--tensorboard"]
    assert flowjax("train", *argv)[0] == 0
    assert flowjax("train", *argv, "--checkpoint=40")[0] == 0
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    kept = shown(tmp_path / "run" / "tensorboard")
    assert [r["step"] for r in records] == [40, 80, 120]
    for record in records:
        for tag in ("loss", "val_loss", "grad_norm", "samples_seen"):
            assert kept[tag][record["step"]] == pytest.approx(record[tag], rel=1e-6)
    assert "mfu" not in kept  # null on the CPU
    assert sum(bool(e.summary.value) for e in events(tmp_path / "run" / "tensorboard")) == 3 + 2


class FakeRun:
    def __init__(self, broken, **given):
        self.id, self.given, self.broken, self.records, self.finished = given["id"] or "made", given, broken, {}, False

    def log(self, record, step):
        if self.broken and step >= 80:
            raise RuntimeError("the network\nis gone")
        self.records[step] = record

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A substitute for the module wandb; `runs` holds the runs that were opened."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="fake")
    module.runs, module.broken = [], False

    def init(**given):
        module.runs.append(FakeRun(module.broken, **given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_config_and_the_records_and_is_resumed(flowjax, tmp_path, wandb):
    argv = [*TINY, f"--workdir={tmp_path}/run", "--wandb=flows"]
    assert flowjax("train", *argv)[0] == 0
    assert flowjax("train", *argv, "--checkpoint=80")[0] == 0
    assert flowjax("train", *argv[:-1], "--wandb=others", "--checkpoint=80")[0] == 0
    first, second, elsewhere = wandb.runs
    assert (first.given["project"], first.given["id"], first.given["resume"]) == ("flows", None, "allow")
    assert first.given["config"]["train"]["batch_size"] == 64
    assert (first.given["name"], first.given["dir"]) == ("run", f"{tmp_path}/run")
    assert (second.given["id"], elsewhere.given["id"]) == ("made", None)
    assert (list(first.records), list(second.records)) == ([40, 80, 120], [120])
    assert {"loss", "val_loss"} <= set(first.records[40])
    assert not {"step", "mfu"} & set(first.records[40])
    assert first.finished
    assert second.finished


def test_a_tracker_that_fails_is_dropped_with_one_line(flowjax, tmp_path, wandb, monkeypatch):
    wandb.broken = True
    code, result, err = flowjax("train", *TINY, f"--workdir={tmp_path}/run", "--wandb=flows", "--tensorboard")
    assert (code, result["step"]) == (0, 120)
    assert [line for line in err.splitlines() if "wandb" in line] == [
        "train: wandb is dropped (the network is gone); training continues, its records are in metrics.jsonl"
    ]
    assert list(wandb.runs[0].records) == [40]
    assert list(shown(tmp_path / "run" / "tensorboard")["loss"]) == [40, 80, 120]


def test_a_tracker_that_cannot_be_opened_or_closed_is_no_error(tmp_path, capsys):
    class Stuck:
        def write(self, step, record): ...

        def close(self):
            raise TimeoutError

    (tmp_path / "file").touch()
    makers = {"tensorboard": lambda: TensorBoard(tmp_path / "file" / "x", 0), "stuck": Stuck}
    with Trackers(makers) as trackers:
        trackers.write(1, {"loss": 1.0})
    first, second = capsys.readouterr().err.splitlines()
    assert "tensorboard is dropped" in first
    assert "stuck is dropped (TimeoutError)" in second


@pytest.mark.parametrize(
    ("flag", "package", "extra"), [("--tensorboard", "tensorboardX", "tensorboard"), ("--wandb=p", "wandb", "wandb")]
)
def test_a_missing_package_is_one_line_that_names_the_extra(flowjax, tmp_path, monkeypatch, flag, package, extra):
    """Also if there is a folder of that name, which Python would import as a package."""
    (tmp_path / package).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, package, raising=False)
    code, _, err = flowjax("train", *TINY, f"--workdir={tmp_path}/run", flag)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"needs {package}: pip install 'flowjax-research[{extra}]'" in err
    assert not (tmp_path / "run").exists()


def test_a_trace_of_some_steps(flowjax, tmp_path):
    """The trace begins and ends at steps where nothing else happens: stretches end there, and records do not change."""
    code, _, err = flowjax("train", *TINY, f"--workdir={tmp_path}/run", "--trace=43:51")
    assert code == 0
    assert "the trace of steps 43 to 51 is in" in err
    (trace,) = (tmp_path / "run" / "trace").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [40, 80, 120]


@pytest.mark.slow
def test_a_trace_takes_what_is_left_of_its_steps(flowjax, tmp_path):
    argv = [*TINY, f"--workdir={tmp_path}/run"]
    assert flowjax("train", *argv)[0] == 0
    assert "steps 80 to 90 is in" in flowjax("train", *argv, "--checkpoint=80", "--trace=10:90")[2]
    assert "the trace" not in flowjax("train", *argv, "--checkpoint=80", "--trace=10:80")[2]


@pytest.mark.parametrize("text", ["5", "9:5", "5:5", "-1:5", "100:121", "a:b"])
def test_a_bad_trace_is_a_usage_error(flowjax, tmp_path, text):
    code, _, err = flowjax("train", *TINY, f"--workdir={tmp_path}/run", f"--trace={text}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "START:STOP, two steps in order, up to train.steps = 120" in err
    assert not (tmp_path / "run").exists()


def test_what_saving_costs_is_in_the_next_record(flowjax, tmp_path, monkeypatch):
    """Checkpoints at 40 and 80 are saved after the records of these steps, so their time is in those of 80 and 120."""
    save = Saver.save
    monkeypatch.setattr(Saver, "save", lambda *args: (time.sleep(0.3), save(*args)))
    assert flowjax("train", *TINY, f"--workdir={tmp_path}/run")[0] == 0
    first, *later = [r["checkpoint_seconds"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert all(cost >= 0.3 > first for cost in later)
