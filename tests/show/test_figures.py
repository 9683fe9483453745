from pathlib import Path

import pytest
from helpers.runs import results, write_run
from PIL import Image

from lora_mnist.disk.predictions import ANSWERS_FILE
from lora_mnist.show.figures import FIGURES, NAMES, draw_run


def drawn(folder: Path) -> set[str]:
    return {path.name for path in (folder / FIGURES).iterdir()}


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("lora", {"wrong"}),
        ("finetune", {"wrong", "layer", "singular_values"}),
        (
            "pretrain",
            {*NAMES} - {"errors", "wrong", "confusion_base"},
        ),
    ],
)
def test_each_as_png_and_svg(tmp_path: Path, stage: str, missing: set[str]) -> None:
    names = draw_run(tmp_path, write_run(tmp_path, stage))
    assert sorted(names) == sorted({*NAMES} - missing)
    assert drawn(tmp_path) == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for name in names:
        assert Image.open(tmp_path / FIGURES / f"{name}.png").size[0] == 598
        assert "cat" in (tmp_path / FIGURES / "errors.svg").read_text()  # text stays text


def test_again_gives_the_same_files(tmp_path: Path) -> None:
    found = write_run(tmp_path)
    draw_run(tmp_path, found)
    before = {path: path.read_bytes() for path in (tmp_path / FIGURES).iterdir()}
    draw_run(tmp_path, found)
    assert {path: path.read_bytes() for path in (tmp_path / FIGURES).iterdir()} == before


def test_what_there_is_no_more_goes_away(tmp_path: Path) -> None:
    found = write_run(tmp_path)
    draw_run(tmp_path, found)
    mine = tmp_path / FIGURES / "notes.txt"
    mine.touch()
    (tmp_path / ANSWERS_FILE).unlink()
    assert draw_run(tmp_path, {**found, "adapter": None}) == ["errors"]
    assert drawn(tmp_path) == {"errors.png", "errors.svg", "notes.txt"}


def test_results_alone_are_enough(tmp_path: Path) -> None:
    assert draw_run(tmp_path, results()) == ["errors"]
