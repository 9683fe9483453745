"""The study of repairs: what it runs composes, its rule chooses as it says, its tables add up."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
import repair
import repair_search
import repair_table
import tasks
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn

from lora_mnist import add_lora

#: By name: the tables, and those of each task.
TABLES = {**repair.TABLES, **repair.TABLES["tasks"]}
del TABLES["tasks"]


@pytest.mark.parametrize("name", [n for n in repair.METHODS if not n.startswith("weighted")])
def test_a_method_keeps_to_100_steps_of_100_images(name: str) -> None:
    cfg = jobs.composed({"digit": 9, **repair.METHODS[name]})
    assert cfg.trainer.max_steps == 100
    images = cfg.data.batch_size + cfg.data.replay
    assert images == (10 if not cfg.data.replay and cfg.digit else 100)
    assert ("lora" in cfg) == (cfg.stage == "lora")


def test_the_tables_bases_were_never_searched_on() -> None:
    searched = repair.bases(repair.PLAN["search"])
    of_tables = [base for of in TABLES.values() for base in repair.bases(of)]
    assert not {base.seed for base in searched} & {base.seed for base in of_tables}
    assert not {base.file for base in searched} & {base.file for base in of_tables}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_asks_for_methods_that_there_are(name: str) -> None:
    of = TABLES[name]
    assert set(of.get("methods", [of.get("repair"), of.get("plain")])) <= repair.METHODS.keys()
    assert of.get("pictures") in (None, *tasks.PICTURES)
    jobs.composed({"stage": "pretrain", **of.get("common", {}), **of.get("pretrain", {})})


def test_the_page_has_a_place_for_each_table_and_each_search() -> None:
    names = [*repair.TABLES, *(f"search {name}" for name in repair.SEARCHES)]
    for name in names:
        assert f"<!-- {name} -->\n" in repair.PAGE.read_text()


@pytest.mark.parametrize("net", [tasks.ResNet(), tasks.ViT()], ids=["ResNet", "ViT"])
def test_a_task_has_a_network_that_takes_an_adapter(net: nn.Module) -> None:
    images = torch.randn(2, 3, 28, 28)
    expected = net.eval()(images)
    assert expected.shape == (2, 10)
    assert torch.allclose(add_lora(net)(images), expected, atol=1e-6)


@pytest.mark.parametrize("what", repair.SEARCHES.values(), ids=repair.SEARCHES.keys())
def test_every_value_of_a_search_composes(what: repair_search.Search) -> None:
    assert what.goals.keys() == {"on_class", "all"}
    for stage in what.stages:
        assert stage.keys() <= what.start.keys()
        for key, values in stage.items():
            for value in values:
                jobs.composed({**what.fixed, **what.start, key: value})


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
    assert repair_table.markdown(rows()).splitlines()[2:] == [
        "| base | 100.0% | 100.0% | 60 | 40 | 7 | 0 of 1 |",
        "| method | 30.0% ± 14.1, 40% | 65.0% ± 14.1, 75% | 60 | 40 | 7 | 2 of 2 |",
        "",
        "The base's errors, on average: 50 on the class, 200 in all.",
    ]
    assert repair_table.markdown({"method": rows()["method"]}).splitlines()[-1] == (
        "| method | 30.0% ± 14.1, 40% | 65.0% ± 14.1, 75% |"
    )


def test_tasks_stand_side_by_side() -> None:
    assert repair_table.side_by_side({"digits": rows(), "clothes": rows()}).splitlines() == [
        "| method | digits | clothes | fewer in all |",
        "| --- | ---: | ---: | ---: |",
        "| base | 50 / 200 | 50 / 200 | 0 of 2 |",
        "| method | 30 / 65 | 30 / 65 | 4 of 4 |",
    ]
