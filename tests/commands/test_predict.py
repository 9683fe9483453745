import shutil
from pathlib import Path

import pytest
import torch
from composed import SMALL, composed
from helpers.commands import ROOT, read_csv, refused
from PIL import Image

from lora_mnist import Classifier
from lora_mnist.commands.predict import find_pictures, predict
from lora_mnist.data import MNIST


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    images = MNIST("MNIST", ROOT / "data").load(train=False)[0]
    for number, image in enumerate(images[:10, 0]):
        picture = Image.fromarray((255 - image).numpy())
        picture.resize((280, 280), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_predict_has_base_and_adapter_side_by_side(with_nine, pictures, tmp_path):
    """For any number of pictures in a table as well."""
    out = tmp_path / "predictions.csv"
    small = (SMALL[0], f"paths.outputs={with_nine}")
    options = (f'images="{pictures}/*.png"', f"adapter={with_nine}/lora/nine", f"out={out}")
    assert predict(composed("predict", *small, *options)) == []  # the file has them
    predictions = predict(composed("predict", *small, *options[:2]))
    assert [each["file"] for each in predictions] == [f"{pictures}/{n}.png" for n in range(10)]
    labels = MNIST("MNIST", ROOT / "data").load(train=False)[1]
    digits = torch.tensor([int(prediction["before"].label) for prediction in predictions])
    assert (digits == labels[:10]).sum() >= 8
    for row, prediction in zip(read_csv(out), predictions, strict=True):
        assert row["file"] == prediction["file"]
        assert prediction["before"] != prediction["after"]
        for side in ("before", "after"):
            label, probability, probabilities = prediction[side]
            assert probability == max(probabilities) == probabilities[int(label)]
            assert (row[side], row[f"{side}_probability"]) == (label, f"{probability:.6f}")
    of_base = tmp_path / "base.csv"
    predict(composed("predict", *small, f"images={pictures}", f"out={of_base}"))
    alone = predict(composed("predict", *small, f"images={pictures}"))
    assert [*read_csv(of_base)[0]] == ["file", "prediction", "probability"]
    assert [each["before"] for each in alone] == [each["before"] for each in predictions]
    assert "after" not in alone[0]
    assert refused(predict, composed("predict", *small, *options)).startswith(f"out={out}: ")


def test_what_a_kill_leaves_of_many_pictures_is_a_part(with_nine, pictures, tmp_path, monkeypatch):
    """It has the rows of all batches before."""
    out, read = tmp_path / "new" / "predictions.csv", Classifier.read

    def killed(self, picture):
        if picture.name == "7.png":
            assert len(read_csv(out.with_name("predictions.csv.part"))) == 6
            raise KeyboardInterrupt
        return read(self, picture)

    monkeypatch.setattr(Classifier, "read", killed)
    base = f"base_ckpt={with_nine}/base/mnist.ckpt"
    images = (f"images={pictures}", f"out={out}", "data.eval_batch_size=2")
    cfg = composed("predict", SMALL[0], base, *images)
    with pytest.raises(KeyboardInterrupt):
        predict(cfg)
    assert [path.name for path in out.parent.iterdir()] == ["predictions.csv.part"]
    monkeypatch.undo()
    predict(cfg)
    assert [path.name for path in out.parent.iterdir()] == ["predictions.csv"]
    assert len(read_csv(out)) == 10


def test_pictures_that_cannot_be_read_are_named(cli, with_nine, pictures):
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.new("L", (50, 50), 255).save(pictures / "empty.png")
    base = f"base_ckpt={with_nine}/base/mnist.ckpt"
    done = cli("predict.py", SMALL[0], base, f"images=[{pictures}/1.png,{pictures}/?????*.png]")
    assert done.code == 1
    broken, empty, count = done.err.splitlines()
    assert broken.startswith(f"{pictures}/broken.png: skipped: ")
    assert empty.startswith(f"{pictures}/empty.png: skipped: ")
    assert count == "2 of 3 pictures skipped"
    assert "1.png" in done.out


def test_find_pictures_takes_files_folders_and_patterns(tmp_path, monkeypatch):
    """Each file is seen once, also where a link goes in a circle."""
    for name in ("1.png", "2.PNG", "a[1].png", "deep/er/3.jpg", ".hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "deep" / "again").symlink_to(tmp_path)

    def names(*patterns):
        cfg = composed("predict", f"images={list(patterns)}")
        return [str(path.relative_to(tmp_path)) for path in find_pictures(cfg.images)]

    assert names(f"{tmp_path}/a[1].png") == ["a[1].png"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "4.png").touch()
    assert find_pictures(composed("predict", "images=0").images) == [Path("0", "4.png")]
    shutil.rmtree(tmp_path / "0")
    several = names(f"{tmp_path}/2.PNG", f"{tmp_path}/[12].*", str(tmp_path))
    assert several == ["2.PNG", "1.png", "a[1].png", "deep/er/3.jpg"]
