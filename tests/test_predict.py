import csv
from pathlib import Path

import pytest
import torch
from composed import SMALL, composed
from helpers.commands import ROOT, refused
from PIL import Image

from lora_mnist.data import load_images
from lora_mnist.predict import find_pictures, predict

NET = SMALL[0]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    images = load_images("MNIST", ROOT / "data", train=False)[0]
    for number, image in enumerate(images[:10, 0]):
        picture = Image.fromarray((255 - image).numpy())
        picture.resize((280, 280), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def run(outputs, *overrides):
    return predict(composed("predict", NET, f"paths.outputs={outputs}", *overrides))


def names(predictions):
    return [Path(prediction["file"]).name for prediction in predictions]


def test_base_and_adapter_side_by_side(with_nine, pictures, tmp_path):
    adapter, base = with_nine / "lora" / "nine", with_nine / "base" / "mnist.ckpt"
    options = (f"adapter={adapter}", f"base_ckpt={base}", f'images="{pictures}/*.png"')
    predictions = run(with_nine, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    assert names(predictions) == [f"{n}.png" for n in range(10)]
    labels = load_images("MNIST", ROOT / "data", train=False)[1]
    digits = torch.tensor([int(prediction["before"]["class"]) for prediction in predictions])
    assert (digits == labels[:10]).sum() >= 8
    for prediction in predictions:
        for side in (prediction["before"], prediction["after"]):
            assert sum(side["probabilities"]) == pytest.approx(1, abs=1e-5)
            assert side["probability"] == max(side["probabilities"])
            assert side["probability"] == side["probabilities"][int(side["class"])]
        assert prediction["before"] != prediction["after"]
    alone = run(with_nine, f"images={pictures}")
    assert [each["before"] for each in alone] == [each["before"] for each in predictions]
    assert "after" not in alone[0]


def test_pictures_that_cannot_be_read_are_named(cli, with_nine, pictures):
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.new("L", (50, 50), 255).save(pictures / "empty.png")
    base = f"base_ckpt={with_nine}/base/mnist.ckpt"
    done = cli("predict.py", NET, base, f"images=[{pictures}/1.png,{pictures}/?????*.png]")
    assert done.code == 1
    broken, empty, count = done.err.splitlines()
    assert broken.startswith(f"{pictures}/broken.png: skipped: ")
    assert empty.startswith(f"{pictures}/empty.png: skipped: ")
    assert count == "2 of 3 pictures skipped"
    assert "1.png" in done.out


def test_a_list_of_files_folders_and_patterns(with_nine, pictures):
    (pictures / "2.png").rename(pictures / "B.PNG")
    (pictures / "3.png").rename(pictures / "a[1].png")
    (pictures / ".hidden.png").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("no picture")
    folder = names(run(with_nine, f"images={pictures}"))
    assert folder == [*(f"{n}.png" for n in (0, 1, 4, 5, 6, 7, 8, 9)), "B.PNG", "a[1].png"]
    assert names(run(with_nine, f'images="{pictures}/a[1].png"')) == ["a[1].png"]
    chosen = f'["{pictures}/5.png","{pictures}/[4-6]*","{pictures}"]'  # each is seen once
    others = [name for name in folder if name not in ("4.png", "5.png", "6.png")]
    assert names(run(with_nine, f"images={chosen}")) == ["5.png", "4.png", "6.png", *others]


def test_any_number_of_pictures_becomes_a_table(with_nine, pictures, tmp_path):
    """From a folder of folders."""
    for number in range(5):
        folder = pictures / f"{number % 2}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (pictures / f"{number}.png").rename(folder / f"{number}.png")
    adapter = f"adapter={with_nine}/lora/nine"
    options = (f"images={pictures}", adapter)
    run(with_nine, *options, f"out={tmp_path}/predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    alone = run(with_nine, f"images={pictures}", adapter)
    for row, prediction in zip(rows, alone, strict=True):
        assert row.pop("file") == prediction["file"]
        for side in ("before", "after"):
            assert row[side] == prediction[side]["class"]
            given = float(row[f"{side}_probability"])
            assert given == pytest.approx(prediction[side]["probability"], abs=1e-5)
    for images, why in ((pictures, "expected a new file"), ("[]", "expected a picture")):
        refusal = composed("predict", NET, f"images={images}", f"out={tmp_path}/predictions.csv")
        assert why in refused(predict, refusal)


def test_a_folder_that_is_a_link_is_looked_into(tmp_path):
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "a.png").touch()
    (tmp_path / "said" / "back").symlink_to(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat").symlink_to("../said")
    found = find_pictures(f"{tmp_path}/in")
    assert found[0] == tmp_path / "in" / "cat" / "a.png"
    assert len({path.resolve() for path in found}) == 1
