"""A hotfix: a folder of mistakes, an adapter that learns them, and how many it mends."""

import pytest
from composed import FEW, QUICK, SMALL
from helpers.commands import ROOT, only_run, read_results
from PIL import Image

from lora_mnist.data import MNIST


@pytest.mark.slow
def test_from_pictures_to_an_adapter(cli, outputs, tmp_path):
    """100 test images as slanted digits, in a folder for each class."""
    images, labels = MNIST("MNIST", ROOT / "data").load(train=False)
    for number in range(100):
        folder = tmp_path / "incoming" / str(int(labels[number]))
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(images[number, 0].numpy())
        slanted = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0.8, -11, 0, 1, 0))
        slanted.save(folder / f"{number}.png")
    repair = ("experiment=repair", "trainer.max_steps=100", "optimizer.lr=0.003", "lora.rank=16")
    mistakes = f"mistakes={tmp_path}/incoming"
    done = cli("train.py", *QUICK, *repair, "lora.scale=1", mistakes).ok()
    results = read_results(only_run(outputs, "lora"))
    assert (results["targets"], results["base_unchanged"]) == ([], True)
    assert sum(results["training_images_per_class"]) == 3_500  # the data set's, no mistakes
    assert results["choices"]["refit"]["reasons"] == [{"code": "mistakes_trained_on"}]
    counts = [sum(results[split]["images_per_class"]) for split in ("mistakes", "mistakes_test")]
    assert 20 < sum(counts) < 80
    assert 0.05 < counts[1] / sum(counts) < 0.4
    line = f"the base has {100 - sum(counts)} of 100 pictures right already, which are excluded"
    assert line in done.err
    for split, count in zip(("mistakes", "mistakes_test"), counts, strict=True):
        assert results[f"{split}_base"]["errors"] == count
        assert results[split]["repaired"] == count - results[split]["errors"] > count / 4
        assert f"{count - results[split]['errors']} of {count} " in done.out

    cli("eval.py", "adapter=latest", FEW[0], *SMALL[1:], mistakes).ok()
    again = read_results(only_run(outputs, "eval"))
    for split in ("test", "mistakes", "mistakes_test"):
        assert again[split]["errors_per_class"] == results[split]["errors_per_class"]
