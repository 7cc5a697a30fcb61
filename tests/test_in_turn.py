"""Which experiments and notebooks a change needs to have run."""

import in_turn


def test_what_a_change_touches_comes_first_and_all_others_follow_in_turn():
    files = {name: f"experiments/{name}/" for name in "abcdefg"}
    first = in_turn.chosen(files, ["experiments/c/experiment.py", "README.md"], 0)
    assert first == ["c", "a", "b", "d"]
    seen = {name for turn in range(7) for name in in_turn.chosen(files, [], turn)}
    assert seen == set(files)
    assert len(in_turn.chosen(files, [], 5)) == 3
    assert in_turn.chosen({"a": "experiments/a/"}, ["experiments/a/README.md"], 4) == ["a"]
