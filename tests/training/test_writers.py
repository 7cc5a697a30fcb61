"""Reading `config.json` and `metrics.jsonl` after they were damaged or edited."""

import json
import shutil

import pytest

from flowjax.training import writers
from flowjax.training.workdir import WorkdirError, read_config, read_size, read_streamed
from flowjax.training.writers import MetricsWriter, read_metrics

RECORD = {"step": 40, "samples_seen": 2560, "loss": 1.5, "val_loss": None, "time": 0.5}


@pytest.fixture(autouse=True)
def warnings_are_repeated():
    writers.warn_once.cache_clear()


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"{}",
        b"[1]",
        b"null",
        b'"step"',
        b'{"step": 80, "samples_se',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        json.dumps(RECORD | {"step": "80"}).encode(),
        json.dumps(RECORD | {"step": True}).encode(),
        json.dumps(RECORD | {"step": 80.5}).encode(),
        json.dumps(RECORD | {"loss": [1]}).encode(),
        json.dumps(RECORD | {"time": None}).encode(),
        json.dumps({key: value for key, value in RECORD.items() if key != "val_loss"}).encode(),
        b"1" * 10_000,
    ],
    ids=lambda line: line[:20].decode(errors="replace"),
)
def test_a_damaged_record_is_skipped_with_one_warning(tmp_path, capsys, line):
    """A damaged line anywhere in the file is skipped, and removed when the run is resumed."""
    path = tmp_path / "metrics.jsonl"
    good = [RECORD | {"step": step} for step in (40, 80)]
    path.write_bytes(b"\n".join([line, json.dumps(good[0]).encode(), line, json.dumps(good[1]).encode(), line]))
    assert read_metrics(path) == good
    assert read_metrics(path) == good
    assert capsys.readouterr().err == f"warning: 3 damaged lines of {path} skipped\n"
    writer = MetricsWriter(path, 40)
    writer.write(good[1])
    writer.close()
    assert path.read_text() == "".join(json.dumps(record) + "\n" for record in good)


def test_records_of_losses_that_are_not_finite_are_records(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(RECORD | {"loss": float("nan"), "val_loss": float("inf")}) + "\n\n")
    assert len(read_metrics(path)) == 1
    assert read_metrics(tmp_path / "missing") == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"5", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"{}", "'config' is missing"),
        (b'{"config": 5, "data": {}}', "the description of the data: name is missing"),
        (b'{"config": {}}', "'data' is missing"),
        (b'{"config": {}, "data": 5}', "must be a JSON object"),
        ("config", "'config' must be a JSON object"),
    ],
)
def test_a_malformed_config_is_one_line(tiny_run, tmp_path, content, reason):
    if content == "config":
        record = json.loads((tiny_run / "config.json").read_text())
        del record["crc32"]
        content = json.dumps(record | {"config": [1]}).encode()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WorkdirError) as error:
        read_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json cannot be read: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", {"train": 5}),
        ("config", {"train": {"steps": {"a": {"b": 1}}}}),
        ("config", {"train": {"steps": "many"}}),
        ("config", {"model": {"name": ["mlp"]}}),
        ("config", {"model": {"name": None}}),
        ("config", {"path": {"schedule": 5}}),
        ("config", {"path": {"schedule": "nothing(1)"}}),
        ("config", {"": 1, ".": 2, "a.b": 3}),
        ("config", {"ema": {"widths": [[1]]}}),
        ("config", {"mesh": {"rules": [5]}}),
        ("data", {"name": "gaussians8"}),
        ("data", {"name": "gaussians8", "shape": [2], "scale": 0, "shift": 0, "num_classes": 0, "levels": 0}),
    ],
    ids=str,
)
def test_wrong_values_in_a_config_are_one_line_from_every_command(flowjax, tiny_run, tmp_path, key, value):
    workdir = tmp_path / "run"
    workdir.mkdir()
    record = json.loads((tiny_run / "config.json").read_text())
    del record["crc32"]
    (workdir / "config.json").write_text(json.dumps(record | {key: value}))
    (workdir / "checkpoints").symlink_to(tiny_run / "checkpoints")
    for command, out in (("sample", ["--out=/dev/null/a.npz"]), ("evaluate", []), ("export", ["--out=/a.safetensors"])):
        code, result, err = flowjax(command, f"--workdir={workdir}", *out)
        assert (code, result, err.count("\n")) == (2, None, 1), err


def test_a_run_of_another_version_is_refused_in_one_line(tiny_run, tmp_path, flowjax):
    record = json.loads((tiny_run / "config.json").read_text())
    for text in (record | {"format": 0}, {key: value for key, value in record.items() if key != "format"}):
        (tmp_path / "config.json").write_text(json.dumps(text))
        code, _, err = flowjax("sample", f"--workdir={tmp_path}", "--num=4", f"--out={tmp_path}/a.npz")
        assert (code, err.count("\n")) == (2, 1)
        assert "was written by another version of flowjax: its format is not 1; train it again" in err


def test_an_edited_config_is_warned_about(tiny_run, tmp_path, capsys):
    """The checksum covers the values, so another layout is not an edit; a file without a checksum is not checked."""
    shutil.copy(tiny_run / "config.json", tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record))
    read_config(tmp_path)
    plain = {key: value for key, value in record.items() if key not in ("crc32", "size")}
    path.write_text(json.dumps(plain))
    read_config(tmp_path)
    assert (read_size(tmp_path), read_streamed(tmp_path)) == ({}, False)
    assert capsys.readouterr().err == ""
    record["data"]["scale"] *= 2
    path.write_text(json.dumps(record))
    assert read_config(tmp_path)[1].normalise.scale == record["data"]["scale"]
    assert "has been edited or damaged since it was written" in capsys.readouterr().err
