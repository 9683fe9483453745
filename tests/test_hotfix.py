"""A hotfix from its first command to its last: a folder of mistakes, an adapter, what it mended."""

from pathlib import Path
from typing import Any

import pytest
from composed import FEW, QUICK, SMALL, composed, small_base
from helpers.commands import ROOT, only_run, read_results
from PIL import Image

from lora_mnist.data import load_images
from lora_mnist.train import train

REPAIR = (
    *("experiment=repair", "trainer.max_steps=30", "optimizer.lr=0.01", "lora.rank=16"),
    "lora.scale=1",
)


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """200 test images as slanted digits, in a folder for each class."""
    images, labels = load_images("MNIST", ROOT / "data", train=False)
    for number in range(200):
        folder = tmp_path / "incoming" / str(int(labels[number]))
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(images[number, 0].numpy()).resize((56, 56))
        slant = (1, 0.8, -22, 0, 1, 0)
        picture.transform(picture.size, Image.Transform.AFFINE, slant).save(
            folder / f"{number}.png"
        )
    return tmp_path / "incoming"


def test_from_pictures_to_an_adapter(cli: Any, incoming: Path, tmp_path: Path) -> None:
    small_base(tmp_path / "outputs")
    wrong = tmp_path / "wrong"
    given = (SMALL[0], f"images={incoming}", f"mistakes={wrong}")
    done = cli("predict.py", *given)
    assert done.code == 0, done.err
    copies = {path.relative_to(wrong): path.read_bytes() for path in wrong.glob("*/*")}
    assert f"the base gets {len(copies)} of 200 pictures wrong: {len(copies)} copied" in done.err
    assert all((incoming / name).read_bytes() == content for name, content in copies.items())
    assert 40 < len(copies) < 160

    done = cli("train.py", *REPAIR, *QUICK[:4], *FEW, f"data.mistakes={wrong}")
    assert done.code == 0, done.err
    results = read_results(only_run(tmp_path / "outputs", "lora"))
    assert (results["digit"], results["target"], results["base_unchanged"]) == (None, None, True)
    held_out = round(0.2 * len(copies))
    for split, count in (("mistakes", len(copies) - held_out), ("mistakes_test", held_out)):
        # The base gets all of them wrong, as it did in predict.py.
        assert (
            sum(results[split]["images_per_class"]) == results[f"{split}_base"]["errors"] == count
        )
        assert results[split]["repaired"] == count - results[split]["errors"] > count / 4
        assert f"{count - results[split]['errors']:,} of {count:,};" in done.out.replace("\n", " ")

    tested = ("adapter=latest", *FEW[:1], "trainer=cpu", f"data.mistakes={wrong}")
    done = cli("eval.py", *tested, "figures=false")
    assert done.code == 0, done.err
    again = read_results(only_run(tmp_path / "outputs", "eval"))
    for split in ("test", "mistakes", "mistakes_test"):
        assert again[split]["errors_per_class"] == results[split]["errors_per_class"]


def test_copies_replace_nothing(cli: Any, incoming: Path, tmp_path: Path) -> None:
    small_base(tmp_path / "outputs")
    wrong = tmp_path / "wrong"
    given = ("predict.py", SMALL[0], f"mistakes={wrong}")
    assert cli(*given, f"images={incoming}").code == 0
    first = {path: path.read_bytes() for path in wrong.glob("*/*")}
    place = next(iter(first))
    place.write_bytes(b"another picture of that name")
    done = cli(*given, f'images="{incoming}/*/*.png"')
    assert f": 1 copied to {wrong}, {len(first) - 1} were there" in done.err
    assert place.read_bytes() == b"another picture of that name"
    (copy,) = set(wrong.glob("*/*")) - set(first)
    assert (copy.parent, copy.read_bytes()) == (place.parent, first[place])
    assert f": 0 copied to {wrong}" in cli(*given, f"images={incoming}").err


def test_weights_of_the_loss_tell_mistakes_from_replay(incoming: Path, tmp_path: Path) -> None:
    """With no weight on the mistakes little is learnt of them."""
    base = small_base(tmp_path / "outputs")
    mended = []
    for weight in (0, 1):
        cfg = composed(
            *("train", *REPAIR, *QUICK, f"base_ckpt={base}", "loss.distill=0"),
            *(f"paths.outputs={tmp_path}/{weight}", f"data.mistakes={incoming}", "data.hardness=0"),
            *(f"loss.target_weight={weight}", "trainer.max_steps=30"),
        )
        found = train(cfg)
        mended.append(found["mistakes_base"]["errors"] - found["mistakes"]["errors"])
    assert mended[0] + 20 < mended[1]


def test_finetuning_learns_mistakes_too(incoming: Path, tmp_path: Path) -> None:
    base = small_base(tmp_path / "outputs")
    cfg = composed(
        *("train", "stage=finetune", *QUICK, f"base_ckpt={base}"),
        *(f"paths.outputs={tmp_path}/outputs", f"data.mistakes={incoming}", "data.mistakes_test=0"),
    )
    found = train(cfg)
    assert sum(found["mistakes_base"]["images_per_class"]) == 200
    assert "mistakes_test" not in found
