"""The search for each method's settings: candidates in stages, judged on validation images alone.

Four bases (pretraining seeds 1 to 4; the study's own has seed 0) are pretrained without 10,000 of
the training images. On these two shares are counted: errors on the class, and all errors, each over
the base's, the mean over the bases. The rule, fixed after trials on these images and before the
search: each share over its goal; the larger of the two quotients counts, and the candidate with the
smallest wins.

Candidates come in stages: each is a grid over some keys, and the other keys are as in the best
candidate so far. Every run tests, so the search lets it see one batch of test images, and does not
read what came of it.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jobs import (
    OUTPUT,
    Setting,
    Settings,
    compose_config,
    errors,
    overrides,
    pretrain,
    slug,
    sweep,
    written,
)

from lora_mnist.files import atomic_write
from lora_mnist.project import PROJECT
from lora_mnist.sweep.records import Row

#: The values to try of each key, as Hydra reads them.
Grid = dict[str, list[str]]


@dataclass(frozen=True)
class Search:
    """A staged search for the settings of one method.

    Attributes:
        goals: for the share of errors on the class, ``on_class``, and for that of ``all`` errors.
        fixed: settings of all candidates.
        start: the first candidate: every key that is searched, and its value.
        stages: grids, in order: some of these keys, and the values to try.
    """

    goals: Mapping[str, float]
    fixed: Settings
    start: Settings
    stages: list[Mapping[str, list[Any]]]

    def first(self) -> dict[str, str]:
        """The first candidate, its values as Hydra reads them."""
        return {key: written(value) for key, value in self.start.items()}

    def grid(self, stage: int, best: Mapping[str, str]) -> Grid:
        """What to try in a stage when ``best`` is the best candidate so far."""
        values = {key: list(map(written, each)) for key, each in self.stages[stage].items()}
        return {key: [value] for key, value in best.items()} | values


@dataclass
class Candidate:
    """Settings, and what became of them on the validation images.

    Attributes:
        settings: values of what is searched, by key, as Hydra reads them.
        shares: errors on the class and all errors over the base's, the mean over its jobs.
        distance: from the goals: the larger of the shares' quotients by them.
    """

    settings: dict[str, str]
    shares: tuple[float, float]
    distance: float


def search(
    setting: Setting, searches: Mapping[str, Search], methods: Mapping[str, Settings]
) -> None:
    """Search for every method's settings; write and print the best candidates of each."""
    pretrain(setting)
    parts = []
    for name, what in searches.items():
        candidates = run_search(setting, OUTPUT / "search" / slug(name), what)
        best = [*overrides(what.fixed), *(f"{k}={v}" for k, v in candidates[0].settings.items())]
        method = overrides(methods[name])
        verdict = "is what" if compose_config(best) == compose_config(method) else "is NOT what"
        parts.append(
            f"### {name}\n\n{candidates_table(candidates)}\n\n"
            f"The first {verdict} `{' '.join(method)}` says."
        )
        print(parts[-1], flush=True)
    with atomic_write(PROJECT / OUTPUT / "search.md") as path:
        path.write_text("\n\n".join(parts) + "\n")


def run_search(setting: Setting, folder: Path, what: Search) -> list[Candidate]:
    """All candidates, best first.

    The folder may hold jobs of later stages, from an earlier call. A stage looks only at jobs that
    it and the stages before it ask for, so that every call goes the same way.
    """
    best = what.first()
    asked: list[Grid] = []
    candidates: list[Candidate] = []
    for stage in range(len(what.stages)):
        asked.append(what.grid(stage, best))
        grid = [f"{key}={','.join(values)}" for key, values in asked[-1].items()]
        rows = sweep(
            setting, folder, *overrides(what.fixed), *grid, "+trainer.limit_test_batches=1"
        )
        rows = [row for row in rows if any(_is_in(row, each) for each in asked)]
        candidates = ranked(rows, what)
        best = candidates[0].settings
    return candidates


def _is_in(row: Row, grid: Grid) -> bool:
    return all(row.overrides[key] in values for key, values in grid.items())


def ranked(rows: list[Row], what: Search) -> list[Candidate]:
    """The candidates, nearest to the goals first."""

    def settings(row: Row) -> list[tuple[str, str]]:
        return [(key, row.overrides[key]) for key in what.start]

    goals = (what.goals["on_class"], what.goals["all"])
    grouped = [list(jobs) for _, jobs in groupby(sorted(rows, key=settings), key=settings)]
    candidates = []
    for jobs in grouped:
        counts = [zip(errors(row, "val"), errors(row, "val_base"), strict=True) for row in jobs]
        of_jobs = [[after / before for after, before in pair] for pair in counts]
        shares = [statistics.mean(each) for each in zip(*of_jobs, strict=True)]
        distance = max(share / goal for share, goal in zip(shares, goals, strict=True))
        candidates.append(Candidate(dict(settings(jobs[0])), (shares[0], shares[1]), distance))
    return sorted(candidates, key=lambda candidate: candidate.distance)


def candidates_table(candidates: list[Candidate]) -> str:
    """The candidates as Markdown, best first."""
    keys = list(candidates[0].settings)
    heads = [*keys, "errors on the class", "all errors", "distance"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(keys)}{' ---: |' * 3}"]
    for each in candidates:
        shares = [f"{share:.1%}" for share in each.shares]
        cells = [*each.settings.values(), *shares, f"{each.distance:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
