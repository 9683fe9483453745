import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from PIL import Image

from lora_mnist.data import load_images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten test images as PNG files, black on white, ten times their size."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    images, _ = load_images("MNIST", ROOT / "data", train=False)
    for number, image in enumerate(images[:10, 0]):
        picture = Image.fromarray((255 - image).numpy())
        picture.resize((280, 280), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_json_and_picture(
    cli: Any, base_ckpt: Path, lora_run: Path, pictures: Path, tmp_path: Path
) -> None:
    seen, adapter = tmp_path / "seen.png", f"adapter={lora_run}/adapter"
    files = f"images={pictures}/*.png"
    arguments = (adapter, f"base_ckpt={base_ckpt}", files, "json=true", f"picture={seen}")
    done = cli("scripts/predict.py", *arguments)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [Path(each["file"]).name for each in found] == [f"{n}.png" for n in range(10)]
    _, labels = load_images("MNIST", ROOT / "data", train=False)
    hits = [each["base"]["digit"] == label for each, label in zip(found, labels, strict=False)]
    assert sum(hits) >= 8
    for side in ("base", "adapted"):
        for each in found:
            probabilities = each[side]["probabilities"]
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            assert each[side]["probability"] == probabilities[each[side]["digit"]]
    assert found[0]["base"] != found[0]["adapted"]
    assert Image.open(seen).size == (10 * 28 * 4, 28 * 4)


def test_unreadable_files_are_named_and_skipped(cli: Any, base_ckpt: Path, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.new("L", (50, 50), 255).save(pictures / "empty.png")
    files = f"images=[{pictures}/1.png,{pictures}/[be]*.png]"
    done = cli("scripts/predict.py", f"base_ckpt={base_ckpt}", files.replace("[be]", "?????*"))
    assert done.code == 1
    assert done.err.splitlines() == [
        f"{pictures}/broken.png: skipped: no readable picture (UnidentifiedImageError)",
        f"{pictures}/empty.png: skipped: nothing on it",
    ]
    assert "1.png" in done.out
    assert "adapted" not in done.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "images=null: expected a picture, or a pattern"),
        (("images={tmp}/none*.png",), "images={tmp}/none*.png: expected pictures; there is no"),
        (
            ("images={tmp}/pictures/1.png", "picture=/dev/null/x.png"),
            "picture=/dev/null/x.png: exp",
        ),
        (("images={tmp}/pictures/1.png", "picture={tmp}/x.y"), "picture={tmp}/x.y: expected a pic"),
        (("images={tmp}/pictures/1.png", "adapter={tmp}"), "adapter={tmp}: expected a readable"),
    ],
)
def test_bad_input(
    cli: Any,
    base_ckpt: Path,
    pictures: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    overrides = tuple(override.format(tmp=tmp_path) for override in overrides)
    done = cli("scripts/predict.py", f"base_ckpt={base_ckpt}", *overrides)
    assert done.code == 2
    assert message.format(tmp=tmp_path) in done.err
    assert len(done.err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}
    assert torch.is_grad_enabled()
