"""Files that are whole or not there."""

import json
import math

import pytest

from flowjax import files


def half(path):
    with files.written(path) as part:
        part.write_text("half")
        raise OSError(28, "No space left on device")


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with pytest.raises(OSError, match="No space"):
        half(path)
    assert list(path.parent.iterdir()) == []
    with files.written(path) as part:
        part.write_text("one")
    with pytest.raises(OSError, match="No space"):
        half(path)
    assert [p.read_text() for p in path.parent.iterdir()] == ["one"]


def test_what_is_set_aside_keeps_its_name_and_never_replaces(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "a.npz").write_text(text)
        files.set_aside(tmp_path / "a.npz", tmp_path / "old")
    assert sorted(p.read_text() for p in (tmp_path / "old").glob("a.npz-*")) == ["one", "two"]
    assert not (tmp_path / "a.npz").exists()


def test_json_has_no_nan():
    """Rows of a table too: RFC 8259, section 6, permits neither NaN nor infinity."""
    value = {"a": math.nan, "b": [{"c": -math.inf, "d": 1.5}, (math.inf, "NaN")], "e": True}
    assert json.loads(files.json_text(value)) == {"a": None, "b": [{"c": None, "d": 1.5}, [None, "NaN"]], "e": True}
