import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed, logged, small_base
from helpers.commands import ROOT
from omegaconf import OmegaConf
from PIL import Image

from lora_mnist import MLP, add_lora, lora_parameters, save_adapter
from lora_mnist import predict as command
from lora_mnist.data import load_images
from lora_mnist.errors import IncompleteError, UserError
from lora_mnist.lora import WEIGHTS_NAME
from lora_mnist.predict import predict

NET = "net.hidden_sizes=[16]"


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


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an adapter on it."""
    outputs = tmp_path_factory.mktemp("outputs")
    net = MLP(hidden_sizes=[16])
    net.load_state_dict(torch.load(small_base(outputs), weights_only=True)["state_dict"])
    torch.manual_seed(0)
    for parameter in lora_parameters(add_lora(net)):
        torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(net, outputs / "lora" / "2026-01-01" / "adapter")
    return outputs


def run(outputs: Path, *overrides: str) -> list[dict[str, Any]]:
    cfg = composed("predict", NET, f"paths.outputs={outputs}", *overrides)
    before = OmegaConf.to_yaml(cfg)
    try:
        return predict(cfg)
    finally:
        assert OmegaConf.to_yaml(cfg) == before


def test_base_and_adapter_side_by_side(outputs: Path, pictures: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen.png"
    with logged("lora_mnist.show.tables") as text:
        found = run(outputs, "adapter=latest", f"images={pictures}/*.png", f"picture={seen}")
    assert [Path(each["file"]).name for each in found] == [f"{n}.png" for n in range(10)]
    _, labels = load_images("MNIST", ROOT / "data", train=False)
    hits = [each["base"]["digit"] == label for each, label in zip(found, labels, strict=False)]
    assert sum(hits) >= 8
    for side in ("base", "adapted"):
        for each in found:
            probabilities = each[side]["probabilities"]
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            assert each[side]["probability"] == max(probabilities)
            assert each[side]["probability"] == probabilities[each[side]["digit"]]
            assert each[side]["class"].startswith(str(each[side]["digit"]))
    assert found[0]["base"] != found[0]["adapted"]
    assert Image.open(seen).width == 1200
    assert {each["note"] for each in found} == {None}
    assert "adapted" in text.getvalue()
    assert torch.is_grad_enabled()


def test_the_command_prints_json(cli: Any, outputs: Path, pictures: Path, tmp_path: Path) -> None:
    adapter, base = outputs / "lora" / "2026-01-01", outputs / "base" / "mnist.ckpt"
    options = (NET, f"adapter={adapter}", f"base_ckpt={base}", f'images="{pictures}/[0-4].png"')
    done = cli("predict.py", *options, "json=true")
    assert done.code == 0, done.err
    assert json.loads(done.out) == run(
        outputs, "adapter=latest", f'images="{pictures}/[0-4].png"', "json=true"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}
    assert not (ROOT / "predict.log").exists()


def test_the_command_names_pictures_that_it_skips(cli: Any, outputs: Path, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.new("L", (50, 50), 255).save(pictures / "empty.png")
    base = f"base_ckpt={outputs}/base/mnist.ckpt"
    done = cli("predict.py", NET, base, f"images=[{pictures}/1.png,{pictures}/?????*.png]")
    assert done.code == 1
    assert done.err.splitlines() == [
        f"{pictures}/broken.png: skipped: no readable picture (UnidentifiedImageError)",
        f"{pictures}/empty.png: skipped: nothing on it",
        "2 of 3 pictures skipped",
    ]
    assert "1.png" in done.out
    assert "adapted" not in done.out


def test_a_picture_named_twice_is_seen_once(outputs: Path, pictures: Path) -> None:
    found = run(outputs, f"images=[{pictures}/1.png,{pictures}/*.png,{pictures}/1.png]")
    assert [Path(each["file"]).stem for each in found] == [*"1023456789"]


def test_a_folder_means_the_pictures_in_it(outputs: Path, pictures: Path) -> None:
    (pictures / "2.png").rename(pictures / "B.PNG")
    Image.open(pictures / "9.png").save(pictures / "9.gif")
    (pictures / "9.png").unlink()
    (pictures / ".hidden.png").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "below.png").mkdir()
    with logged("lora_mnist.predict") as text:
        found = run(outputs, f"images={pictures}")
    assert [Path(each["file"]).name for each in found] == [
        *(f"{n}.png" for n in (0, 1, 3, 4, 5, 6, 7, 8)),
        *("9.gif", "B.PNG"),
    ]
    assert text.getvalue().splitlines() == [
        f"{pictures}: files that are no pictures by their names, left out: 1",
        f"{pictures}: subfolders, left out: 1",
    ]


def test_a_pattern_leaves_folders_out(outputs: Path, pictures: Path) -> None:
    (pictures / "1").mkdir()
    found = run(outputs, f"images={pictures}/1*")
    assert [Path(each["file"]).name for each in found] == ["1.png"]


@pytest.fixture
def doubtful(tmp_path: Path) -> Path:
    """Two digits in one picture, noise, and one digit."""
    folder = tmp_path / "doubtful"
    folder.mkdir()
    images, _ = load_images("MNIST", ROOT / "data", train=False)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (60, 60), generator=generator, dtype=torch.uint8)
    pages = {"42": torch.cat([images[4, 0], images[1, 0]], 1), "noise": noise, "one": images[0, 0]}
    for name, page in pages.items():
        Image.fromarray(page.numpy()).save(folder / f"{name}.png")
    return folder


def test_what_seems_to_be_no_digit_or_several_gets_a_note(outputs: Path, doubtful: Path) -> None:
    with logged("lora_mnist.predict") as warnings, logged("lora_mnist.show.tables") as table:
        found = run(outputs, f"images={doubtful}")
    assert [each["note"] for each in found] == ["several digits", "no digit", None]
    assert all(each["base"]["class"] for each in found)
    assert warnings.getvalue().splitlines() == [
        "2 of 3 pictures seem to show no digit or several, whatever the answer: "
        f"{doubtful}/42.png (several digits), {doubtful}/noise.png (no digit)"
    ]
    assert "several digits" in table.getvalue()


def test_a_warning_of_many_pictures_is_one_line(outputs: Path, doubtful: Path) -> None:
    for copy in "abcd":
        shutil.copy(doubtful / "42.png", doubtful / f"{copy}.png")
    with logged("lora_mnist.predict") as warnings:
        run(outputs, f"images={doubtful}")
    (line,) = warnings.getvalue().splitlines()
    assert line.startswith("6 of 7 pictures")
    assert line.count("digits)") == 3
    assert line.endswith(", ...")


def test_what_is_no_digit_by_nature_has_no_note(outputs: Path, doubtful: Path) -> None:
    base = f"base_ckpt={outputs}/base/mnist.ckpt"
    with logged("lora_mnist.predict") as warnings:
        found = run(outputs, "data=fashion_mnist", base, f"images={doubtful}")
    assert [each["file"] for each in found if "note" in each] == []
    assert warnings.getvalue() == ""


def test_more_pictures_than_a_page_has_room_for(
    outputs: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_PAGE", 4)
    with logged("lora_mnist.predict") as text:
        run(outputs, f"images={pictures}", f"picture={tmp_path}/seen.png")
    names = ["seen.png", "seen-2.png", "seen-3.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", *names}
    widths = [Image.open(tmp_path / name).width for name in names]
    assert widths == [480, 480, 480]
    assert text.getvalue().endswith(f"picture: 3 pages, the last is {tmp_path}/seen-3.png\n")


def test_a_name_is_meant_as_it_stands(outputs: Path, pictures: Path) -> None:
    (pictures / "1.png").rename(pictures / "a[1].png")
    found = run(outputs, f'images="{pictures}/a[1].png"')
    assert [Path(each["file"]).name for each in found] == ["a[1].png"]


def test_nothing_to_see(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(IncompleteError, match="^1 of 1 pictures skipped$"):
        run(outputs, f"images={tmp_path}/broken.png", "json=true", f"picture={tmp_path}/seen.png")
    assert json.loads(capsys.readouterr().out) == []
    assert not (tmp_path / "seen.png").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "images=null: expected a picture, a folder, or a pattern"),
        (("images={tmp}/none*.png",), "images={tmp}/none*.png: expected pictures; there is no"),
        (("images={tmp}",), "images={tmp}: expected files that end in .jpg, .jpeg, .png, .ppm"),
        (("images={tmp}/pict*",), "images={tmp}/pict*: expected pictures; there is no such file"),
        (("images={one}", "json=2"), "json=2: expected true or false"),
        (("images={one}", "picture=/dev/null/x.png"), "picture=/dev/null/x.png: expected a pict"),
        (("images={one}", "picture={tmp}"), "picture={tmp}: expected a file to draw in, or null"),
        (("images={one}", "picture={tmp}/x.y"), "picture={tmp}/x.y: expected a picture file to"),
        (("images={one}", "adapter={tmp}"), f"adapter={{tmp}}: expected a readable {WEIGHTS_NAME}"),
        (("images={one}", "base_ckpt={tmp}/none"), "base_ckpt={tmp}/none: no such file"),
        (("images={one}", "+trainer.max_steps=1"), "trainer=...: nothing reads this key with sta"),
        (("images={one}", "data.std=0"), "data.std=0: expected"),
    ],
)
def test_refuses(
    outputs: Path, pictures: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    names = {"{one}": f"{pictures}/1.png", "{tmp}": str(tmp_path)}
    for name, value in names.items():
        overrides = tuple(override.replace(name, value) for override in overrides)
        message = message.replace(name, value)
    with pytest.raises(UserError) as caught:
        run(outputs, *overrides)
    assert str(caught.value).startswith(message)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}


def test_defines_nothing_that_it_does_not_use() -> None:
    keys = {"stage", "data", "net", "base_name", "base_ckpt", "adapter", "allow_other_base"}
    assert set(composed("predict")) == {*keys, "paths", "images", "json", "picture"}
