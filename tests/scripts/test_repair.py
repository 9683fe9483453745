"""The studies: what they run composes, the search chooses as it says, tables add up."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
import repair
import repair_search
import tasks
import torch
from composed import FEW, SMALL
from helpers.commands import ROOT
from omegaconf import OmegaConf
from torch import nn

from lora_mnist import add_lora

#: By name: the plans of the tables.
TABLES = {"test": repair.PLAN["test"], "several": repair.PLAN["several"], **repair.PLAN["tasks"]}


@pytest.mark.parametrize("name", [n for n in repair.METHODS if not n.startswith("weighted")])
def test_a_method_keeps_to_100_steps_of_100_images(name: str) -> None:
    cfg = jobs.composed(["digit=9", *repair.METHODS[name].split()])
    assert cfg.trainer.max_steps == 100
    images = cfg.data.batch_size + cfg.data.replay
    assert images == (10 if not cfg.data.replay and cfg.digit else 100)
    assert ("lora" in cfg) == (cfg.stage == "lora")


def test_the_tables_bases_were_never_searched_on() -> None:
    searched = {base.seed for base, _ in jobs.cases({**repair.PLAN["search"], "digits": [2]})}
    for plan in TABLES.values():
        cases = jobs.cases({**plan, "digits": [2]})
        assert cases
        assert not {base.seed for base, _ in cases} & searched


@pytest.mark.parametrize("name", TABLES)
def test_a_table_asks_for_methods_that_there_are(name: str) -> None:
    plan = TABLES[name]
    assert set(plan.get("methods", [])) <= repair.METHODS.keys()
    assert plan.get("pictures") in (None, *tasks.PICTURES)
    ((base, _),) = jobs.cases({**plan, "bases": [1], "digits": [2]})
    jobs.composed(["stage=pretrain", *base.common, *base.pretrain])


@pytest.mark.parametrize("net", [tasks.ResNet(), tasks.ViT()], ids=["ResNet", "ViT"])
def test_a_task_has_a_network_that_takes_an_adapter(net: nn.Module) -> None:
    images = torch.randn(2, 3, 28, 28)
    expected = net.eval()(images)
    assert expected.shape == (2, 10)
    assert torch.allclose(add_lora(net)(images), expected, atol=1e-6)


@pytest.mark.parametrize("name", repair_search.SEARCHES)
def test_every_value_of_a_search_is_one_of_a_key(name: str) -> None:
    search = repair_search.SEARCHES[name]
    assert search["goals"].keys() == {"on_class", "all"}
    cfg = jobs.composed(repair_search.overrides(search, search["start"]))
    for stage in search["stages"]:
        for key, values in stage.items():
            assert key in search["start"]
            folder = ROOT / "configs" / key
            for value in values:
                if folder.is_dir():
                    assert (folder / f"{value}.yaml").is_file()
                else:
                    assert type(OmegaConf.select(cfg, key)) in (type(value), str)


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
    monkeypatch.setattr(jobs, "composed", OmegaConf.from_dotlist)
    eight, nine = (["stage=lora", f"digit={digit}"] for digit in (8, 9))
    assert jobs.run(eight) == jobs.run(eight)
    folder, results = jobs.run(nine)
    assert results == {"digit": 9}
    (folder / "results.json").rename(folder / "torn")
    assert jobs.run(nine)[1] == {"digit": 9}
    assert done == [8, 9, 9]


def test_the_weakest_class_is_a_case_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.Base, "results", lambda self: {"val": outcome(3, 9, 5)})
    first, second = jobs.Base(1), jobs.Base(2)
    plan = {"bases": [1, 2], "digits": ["weakest", 2]}
    assert jobs.cases(plan) == [(first, 1), (first, 2), (second, 1), (second, 2)]
    assert jobs.cases({**plan, "bases": [1], "digits": ["weakest", 1]}) == [(first, 1)]


@pytest.mark.slow
def test_methods_are_run_on_a_small_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter, weighted fine-tuning, and repairs in a row and put together, on real runs."""
    monkeypatch.setattr(jobs, "OUTPUT", tmp_path)
    common = f"{' '.join((*SMALL, *FEW))} data.batch_size=50 paths.outputs={tmp_path}"
    plan = {"bases": [1], "digits": [9], "common": common}
    plan["methods"] = ["naive (notebook)", "weighted fine-tuning, 10"]
    rows = repair.compare(plan, quick=True)
    assert list(rows) == ["base", *plan["methods"]]
    for (numbers,) in rows.values():
        assert numbers["class"] <= 100
    assert rows["naive (notebook)"][0]["all"] > 100 == rows["base"][0]["all"]
    ((base, _),) = jobs.cases(plan, quick=True)
    folder, alone = base.run(["stage=lora"], 9)
    adapters = repair.together(base, [folder / "adapter"], 1.0)
    assert adapters["errors_per_class"] == alone["test"]["errors_per_class"]
    monkeypatch.setattr(jobs.Base, "classes", lambda self: [9, 8])
    first, second = repair.in_a_row(base, ["stage=lora"])
    bases = []
    for path in tmp_path.glob("runs/*/results.json"):
        results = json.loads(path.read_text())
        if "test_base" in results:
            bases.append(results["test_base"]["errors_per_class"])
    assert first["errors_per_class"] in bases
    assert second["errors_per_class"][8] < first["errors_per_class"][8]


def test_a_stage_starts_from_the_best_candidate_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(base: Any, settings: list[str], digit: int) -> tuple[Path, Any]:
        a, b = (int(text.partition("=")[2]) for text in settings[1:3])
        asked.append((a, b))
        return Path(), {"val": outcome(10 * abs(a - 2) + b, 10), "val_base": outcome(50, 50)}

    monkeypatch.setattr(jobs.Base, "run", run)
    search = {
        "goals": {"on_class": 0.2, "all": 0.5},
        "fixed": "stage=lora",
        "start": {"a": 1, "b": 5},
        "stages": [{"a": [1, 2]}, {"b": [0, 5]}],
    }
    best, *others = repair_search.run_search([(jobs.Base(1), 0)], search)
    assert asked == [(1, 5), (2, 5), (2, 0)]
    assert best.settings == {"a": 2, "b": 0}
    assert (best.on_class, best.every) == pytest.approx((0, 0.1))
    assert best.distance == pytest.approx(0.2)  # the goal that is farther off counts
    assert [each.settings for each in others] == [{"a": 2, "b": 5}, {"a": 1, "b": 5}]


def test_tables_have_mean_spread_and_worst_case() -> None:
    def run(target: int, other: int) -> dict[str, float]:
        test = outcome(target, other) | {"repaired": 60, "broken": 40}
        return {**repair.row(test, outcome(50, 150), [0]), "weights": 7}

    rows = {"base": [run(50, 150)], "method": [run(10, 140), run(20, 90)]}
    assert repair.test(rows).splitlines()[2:] == [
        "| base | 100.0% | 100.0% | 60 | 40 | 7 | 0 of 1 |",
        "| method | 30.0% ± 14.1, 40% | 65.0% ± 14.1, 75% | 60 | 40 | 7 | 2 of 2 |",
        "",
        "The base's errors, on average: 50 on the class, 200 in all.",
    ]
    assert repair.several(rows).endswith("| method | 30.0% ± 14.1, 40% | 65.0% ± 14.1, 75% |")
    of_tasks = repair.tasks({"digits": rows, "clothes": {"base": rows["base"]}})
    assert of_tasks.endswith(
        "| base | 50 / 200 | 50 / 200 | 0 of 2 |\n| method | 30 / 65 |  | 2 of 2 |"
    )
