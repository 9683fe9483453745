"""The picture of a sweep."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_mnist.sweep.figure import draw_sweep

METRIC = "val.accuracy"


def grid(*keys: str) -> list[tuple[dict[str, str], float | None]]:
    values = ("1", "2", "16")
    cells = [
        dict(zip(keys, (a, b, c), strict=False)) for a in values for b in values for c in values
    ]
    unique = [dict(cell) for cell in {tuple(cell.items()) for cell in cells}]
    return [(cell, sum(map(float, cell.values()))) for cell in unique]


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        (grid("lora.rank"), {"lora.rank", METRIC}),
        (grid("lora.rank", "lora.alpha"), {"lora.rank", "lora.alpha", METRIC}),
        (
            [*grid("lora.rank", "lora.alpha"), ({"lora.rank": "0", "lora.alpha": "1"}, None)],
            {"lora.rank", "lora.alpha", METRIC},
        ),
        (grid("lora.rank", "seed"), {"lora.rank", f"mean {METRIC} over seeds"}),
        (grid("lora.rank", "lora.alpha", "digit"), {"lora.rank", "lora.alpha", "digit", METRIC}),
        ([({"loss": "focal"}, 0.5), ({"loss": "hinge"}, 0.4)], {"loss", METRIC}),
        ([({"seed": "0"}, 0.5)], {"seed", METRIC}),
    ],
)
def test_both_axes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: Any, labels: set[str]
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    draw_sweep(tmp_path / "a.png", points, METRIC, "max")
    names = {text for axes in drawn[0].axes for text in (axes.get_xlabel(), axes.get_ylabel())}
    assert names - {""} == labels
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) >= 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


@pytest.mark.parametrize(
    ("mode", "best"), [("max", "0.9000 at seed=1"), ("min", "0.1000 at seed=")]
)
def test_the_best_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, best: str
) -> None:
    from matplotlib.figure import Figure

    titles: list[str] = []
    name = Figure.suptitle
    monkeypatch.setattr(
        Figure, "suptitle", lambda self, t, **k: (titles.append(t), name(self, t, **k))
    )
    draw_sweep(tmp_path / "a.png", [({"seed": "0"}, 0.1), ({"seed": "1"}, 0.9)], METRIC, mode)
    assert best in titles[0]


@pytest.mark.parametrize("name", ["$x", "a_b^c", "$\\frac{$"])
def test_names_are_no_formulas(tmp_path: Path, name: str) -> None:
    points = [({name: name}, 0.5), ({name: f"{name}2"}, 0.4)]
    draw_sweep(tmp_path / "a.png", points, METRIC, "max")
    assert (tmp_path / "a.png").stat().st_size > 1000
