"""Which experiments and notebooks a change needs to have run."""

import affected


def test_what_a_change_touches_comes_first_and_all_others_are_chosen_sooner_or_later():
    files = {name: f"experiments/{name}/" for name in "abcdefg"}
    first = affected.chosen(files, ["experiments/c/experiment.py", "README.md"], "0a1b")
    assert first[0] == "c"
    assert len(set(first)) == 4
    seen = {name for commit in range(40) for name in affected.chosen(files, [], str(commit))}
    assert seen == set(files)  # one of seven is missed with probability 7 (4/7)^40 < 1e-8
    assert affected.chosen({"a": "experiments/a/"}, ["experiments/a/README.md"], "0") == ["a"]
