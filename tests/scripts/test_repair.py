"""The study of repairs: what it runs composes, its rule chooses as it says, its tables add up."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
import repair
import repair_search
import repair_table
from hydra.core.override_parser.overrides_parser import OverridesParser

#: Methods that are given more work on purpose.
LONGER = {"going on for equal work"}


@pytest.mark.parametrize("name", sorted(repair.METHODS.keys() - LONGER))
def test_a_method_keeps_to_100_steps_of_100_images(name: str) -> None:
    cfg = jobs.composed({"digit": 9, **repair.METHODS[name]})
    assert cfg.trainer.max_steps == 100
    images = cfg.data.batch_size + cfg.data.replay
    assert images == (10 if not cfg.data.replay and cfg.digit else 100)
    assert ("lora" in cfg) == (cfg.stage == "lora")


def test_the_tables_bases_were_never_searched_on() -> None:
    searched = repair.bases(repair.PLAN["search"])
    of_tables = [base for of in repair.TABLES.values() for base in repair.bases(of)]
    assert not {base.seed for base in searched} & {base.seed for base in of_tables}
    assert not {base.file for base in searched} & {base.file for base in of_tables}


@pytest.mark.parametrize("name", repair.TABLES)
def test_a_table_asks_for_methods_that_there_are(name: str) -> None:
    of = repair.TABLES[name]
    asked = of.get("methods", [of.get("repair"), of.get("plain")])
    assert set(asked) <= repair.METHODS.keys()
    assert f"<!-- {name} -->\n" in repair.PAGE.read_text()


@pytest.mark.parametrize("what", repair.SEARCHES.values(), ids=repair.SEARCHES.keys())
def test_every_stage_of_a_search_composes(what: repair_search.Search) -> None:
    assert what.goals.keys() == {"on_class", "all"}
    for number, stage in enumerate(what.stages):
        assert stage.keys() <= what.start.keys()
        for settings in what.grid(number, what.start):
            jobs.composed({**what.fixed, **settings})


@pytest.mark.parametrize(
    "value",
    [
        *("linear1", "linear3.*", "linear[12]", "it's", "true", "4", "a,b", "a\\", ".*bias", ""),
        *("${lora.rank}", ["linear1", "linear[12]"], None, False, 0.0005, 1e-05, 64),
    ],
)
def test_values_survive_hydras_grammar(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={jobs.written(value)}")
    assert override.value() == value


def outcome(*per_class: int) -> dict[str, Any]:
    return {"errors_per_class": list(per_class)}


def test_a_run_is_done_once_and_again_after_it_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def train(cfg: Any, folder: Path) -> None:
        assert not list(folder.iterdir())
        done.append(cfg.digit)
        (folder / "results.json").write_text(json.dumps({"digit": cfg.digit}))

    monkeypatch.setattr(jobs, "OUTPUT", tmp_path)
    monkeypatch.setattr(jobs, "train", train)
    eight, nine = ({"stage": "lora", "digit": digit} for digit in (8, 9))
    assert jobs.run(eight) == jobs.run(eight)
    folder, results = jobs.run(nine)
    assert results == {"digit": 9}
    (folder / "results.json").rename(folder / "torn")
    assert jobs.run(nine)[1] == {"digit": 9}
    assert done == [8, 9, 9]


def test_the_classes_of_a_base_come_weakest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    base = jobs.Base(1, {}, {})
    monkeypatch.setattr(jobs.Base, "results", lambda self: {"val": outcome(3, 9, 5)})
    assert base.classes() == [1, 2, 0]
    assert base.target("weakest") == [1]
    assert base.target([0, 2]) == [0, 2]
    of = {"bases": [1], "digits": ["weakest", 1, 2]}
    assert repair.cases(of) == [(base, [1]), (base, [2])]


def test_a_stage_starts_from_the_best_candidate_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(base: Any, settings: Any, target: Any, seed: int) -> tuple[Path, Any]:
        asked.append((settings["a"], settings["b"]))
        wrong = 10 * abs(settings["a"] - 2) + settings["b"]
        return Path(), {"val": outcome(wrong, 10), "val_base": outcome(50, 50)}

    monkeypatch.setattr(jobs.Base, "run", run)
    what = repair_search.Search(
        goals={"on_class": 0.2, "all": 0.5},
        fixed={},
        start={"a": 1, "b": 5},
        stages=[{"a": [1, 2]}, {"b": [0, 5]}],
    )
    best, *others = repair_search.run_search([(jobs.Base(1, {}, {}), [0])], what)
    assert asked == [(1, 5), (2, 5), (2, 0)]
    assert best.settings == {"a": 2, "b": 0}
    assert (best.on_class, best.every) == pytest.approx((0, 0.1))
    assert best.distance == pytest.approx(0.2)  # the goal that is farther off counts
    assert [each.settings for each in others] == [{"a": 2, "b": 5}, {"a": 1, "b": 5}]


def rows() -> repair_table.Rows:
    def run(target: int, other: int) -> dict[str, Any]:
        test = outcome(target, other) | {"repaired": 60, "broken": 40}
        return {"test": test, "parameters": {"trainable": 7}}

    base = run(50, 150)
    found = {"base": [repair_table.columns(base, base, [0])]}
    found["method"] = [
        repair_table.columns(run(*each), base, [0]) for each in ((10, 140), (20, 90))
    ]
    return found


def test_a_table_has_mean_spread_and_worst_case() -> None:
    assert repair_table.markdown(rows(), {"method": 1.5}).splitlines()[2:] == [
        "| base | 100.0% | 100.0% | 60 | 40 | 7 | 1 |  |",
        "| method | 30.0% ± 14.1, 40% | 65.0% ± 14.1, 75% | 60 | 40 | 7 | 2 | 1.5 |",
        "",
        "The base's errors, on average: 50 on the class, 200 in all.",
    ]
    assert repair_table.markdown({"method": rows()["method"]}).splitlines()[-1] == (
        "| method | 30.0% ± 14.1, 40% | 65.0% ± 14.1, 75% |"
    )


def test_the_picture_of_a_study(tmp_path: Path) -> None:
    repair_table.draw(rows(), tmp_path / "repair.png")
    assert (tmp_path / "repair.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("rate", "place"), [(0.002, "the first"), (0.001, "row 2, 0.100 behind"), (0.5, "none of them")]
)
def test_a_search_says_which_candidate_its_method_is(rate: float, place: str) -> None:
    rates = [{"optimizer.lr": rate} for rate in (0.002, 0.001)]
    candidates = [
        repair_search.Candidate(settings, 0.5, 0.6, distance)
        for settings, distance in zip(rates, (1.0, 1.1), strict=True)
    ]
    fixed = {"stage": "lora"}
    what = repair_search.Search({"on_class": 0.2, "all": 0.6}, fixed, rates[0], [])
    method = {"optimizer.lr": rate, "stage": "lora"}
    text = repair_search.markdown_of_search(candidates, what, method)
    assert "| 0.002 | 50.0% | 60.0% | 1.000 |" in text.splitlines()
    assert text.splitlines()[-1] == f"`optimizer.lr={rate} stage=lora` is {place}."
