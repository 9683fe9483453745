"""The benchmark's table: who is compared with whom, and what counts as reached."""

import pytest
import rows
import tables


def measured(less_is_better: bool = False, **values: list[float]) -> rows.Row:
    """A row whose contestants return these values, one a round."""
    rounds = {name: iter(each) for name, each in values.items()}
    contestants = {name: (lambda each=each: next(each)) for name, each in rounds.items()}
    row = rows.Row("work", "s", contestants, less_is_better=less_is_better)
    return row.measure(rounds=len(values["ours"]))


def test_contestants_are_compared_round_by_round() -> None:
    # The machine is slow in the second round, for both.
    row = measured(ours=[20.0, 2.0, 30.0], notebook=[10.0, 1.0, 10.0])
    assert row.measured == {"ours": [20.0, 2.0, 30.0], "notebook": [10.0, 1.0, 10.0]}
    assert row.ratio("notebook") == pytest.approx(2)
    assert measured(True, ours=[1.0], notebook=[3.0]).ratio("notebook") == pytest.approx(3)


def test_a_goal_is_met_or_missed() -> None:
    row = measured(ours=[20.0], PEFT=[10.0], floor=[40.0])
    row.at_least, row.at_most = {"PEFT": 1.05, "floor": 0.8}, 25
    assert row.verdicts() == [
        ("2.00 x PEFT (>= 1.05)", True),
        ("0.50 x floor (>= 0.8)", False),
        ("20.00 s (<= 25)", True),
    ]
    assert row.cells() == [
        "work",
        "s",
        "ours 20.00 (20.00-20.00)<br>PEFT 10.00 (10.00-10.00)<br>floor 40.00 (40.00-40.00)",
        "met: 2.00 x PEFT (>= 1.05)<br>**missed**: 0.50 x floor (>= 0.8)<br>met: 20.00 s (<= 25)",
    ]


def test_a_first_round_to_warm_up_does_not_count() -> None:
    turns = []

    def contestant(name: str) -> float:
        turns.append(name)
        return len(turns)

    contestants = {name: (lambda name=name: contestant(name)) for name in ("notebook", "ours")}
    row = rows.Row("work", "s", contestants, warm_up=True).measure(rounds=1)
    assert turns == ["ours", "notebook", "ours"]
    assert row.measured == {"notebook": [2], "ours": [3]}


def test_tables_are_markdown() -> None:
    assert tables.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert tables.spread([3.0, 1.0, 2.0]) == "2.00 (1.00-3.00)"
    assert tables.spread([300.4, 100.0]) == "200 (100-300)"
    assert tables.spread([3.0, 1.0], 1) == "2.0 (1.0-3.0)"
