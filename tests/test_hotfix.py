"""A hotfix: a folder of mistakes, an adapter that learns them, and how many it mends."""

from types import SimpleNamespace

import pytest
from composed import FEW, QUICK, SMALL
from helpers.commands import ROOT, only_run, read_results
from PIL import Image

from lora_mnist.checks import warn_of_known_validation
from lora_mnist.data import load_images
from lora_mnist.predict import copy_into

REPAIR = (
    *("experiment=repair", "trainer.max_steps=100", "optimizer.lr=0.003", "lora.rank=16"),
    "lora.scale=1",
)


@pytest.fixture(scope="module")
def incoming(tmp_path_factory):
    """100 test images as slanted digits, in a folder for each class."""
    root = tmp_path_factory.mktemp("incoming")
    images, labels = load_images("MNIST", ROOT / "data", train=False)
    for number in range(100):
        folder = root / str(int(labels[number]))
        folder.mkdir(exist_ok=True)
        picture = Image.fromarray(images[number, 0].numpy())
        slanted = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0.8, -11, 0, 1, 0))
        slanted.save(folder / f"{number}.png")
    return root


@pytest.mark.slow
def test_from_pictures_to_an_adapter(cli, incoming, outputs, tmp_path):
    wrong = tmp_path / "wrong"
    done = cli("predict.py", SMALL[0], f"images={incoming}", f"mistakes={wrong}").ok()
    copies = {path.relative_to(wrong): path.read_bytes() for path in wrong.glob("*/*")}
    assert f"the base gets {len(copies)} of 100 pictures wrong: {len(copies)} copied" in done.err
    assert all((incoming / name).read_bytes() == content for name, content in copies.items())
    assert 20 < len(copies) < 80

    done = cli("train.py", *QUICK, *REPAIR, f"data.mistakes={wrong}").ok()
    results = read_results(only_run(outputs, "lora"))
    assert (results["targets"], results["base_unchanged"]) == ([], True)
    held_out = round(0.2 * len(copies))
    for split, count in (("mistakes", len(copies) - held_out), ("mistakes_test", held_out)):
        # The base gets all of them wrong, as it did in predict.py.
        assert results[f"{split}_base"]["errors"] == count
        assert sum(results[split]["images_per_class"]) == count
        assert results[split]["repaired"] == count - results[split]["errors"] > count / 4
        right = f"{count - results[split]['errors']:,} of {count:,} right"
        assert right in done.out.replace("\n", " ")

    tested = ("adapter=latest", *FEW[:1], *SMALL[1:], f"data.mistakes={wrong}")
    done = cli("eval.py", *tested).ok()
    again = read_results(only_run(outputs, "eval"))
    for split in ("test", "mistakes", "mistakes_test"):
        assert again[split]["errors_per_class"] == results[split]["errors_per_class"]


def test_copies_replace_nothing(incoming, tmp_path):
    first, second = sorted((incoming / "7").glob("*.png"))[:2]
    place = tmp_path / "7" / first.name
    assert copy_into(tmp_path, first)
    assert not copy_into(tmp_path, first)
    place.write_bytes(second.read_bytes())
    assert copy_into(tmp_path, first)
    assert not copy_into(tmp_path, first)
    assert place.read_bytes() == second.read_bytes()
    (copy,) = set(place.parent.iterdir()) - {place}
    assert copy.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("left_out", [0, 32])
def test_mistakes_taken_from_validation_do_not_accuse_the_base(caplog, left_out):
    """Without these, a base has fewer errors on what is left, whatever it has been trained on."""
    outcomes = {
        "val_base": {"errors": 8, "images_per_class": [514]},
        "test_base": {"errors": 81, "images_per_class": [1082]},
    }
    all_sets = (range(9), range(514 + left_out), range(1082))
    data = SimpleNamespace(val_set=range(514), test_set=range(1082), sets=all_sets)
    warn_of_known_validation(outcomes, data)
    assert ("has probably been trained on" in caplog.text) == (left_out == 0)
