import numpy
import pytest
from PIL import Image

from lora_mnist.data import FolderDataModule
from lora_mnist.data.mistakes import read_mistakes

PETS = FolderDataModule(None, classes=["cat", "dog"], image_size=4, channels=1, mean=0.5, std=0.5)


def write(folder, names):
    for name, grey in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numpy.full((4, 4), grey, dtype=numpy.uint8)).save(path)
    return folder


def read(folder, share=0.2):
    """Labels by grey: of the mistakes to learn from, and of those held out."""
    sets = read_mistakes(folder, PETS.class_of_folder, PETS.read_picture, share)
    return [
        dict(zip(of.images[:, 0, 0, 0].tolist(), of.labels.tolist(), strict=True)) for of in sets
    ]


def test_a_share_is_held_out_by_content_and_names_do_not_matter(tmp_path):
    greys = {f"{'cat' if n < 20 else 'dog'}/{n}.png": n for n in range(40)}
    learnt, held_out = read(write(tmp_path / "one", greys))
    assert (len(learnt), len(held_out)) == (32, 8)
    assert learnt | held_out == {n: int(n >= 20) for n in range(40)}
    others = {name.replace("/", "/other_"): n for name, n in greys.items()}
    twice = write(write(tmp_path / "two", others), greys)
    assert read(twice) == [learnt, held_out]
    counts = [len(read(twice, share)[1]) for share in (0, 0.01, 0.5)]
    assert counts == [0, 1, 20]
    # Two more pictures move at most one of the others.
    more, _ = read(write(twice, {"cat/a.png": 100, "dog/b.png": 101}))
    assert len(more.keys() & learnt.keys()) >= len(learnt) - 1


def test_unreadable_pictures_are_named(tmp_path, caplog):
    write(tmp_path, {"cat/1.png": 1, "dog/2.png": 2})
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / ".hidden").write_text("no picture")
    assert read(tmp_path, 0)[0] == {1: 0, 2: 1}
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/cat/notes.txt: skipped: no readable picture")


@pytest.mark.parametrize("names", [[], ["cow/1.png"], ["1.png"], ["cat/1.png"]])
def test_refuses_a_folder_without_mistakes_to_learn(tmp_path, names):
    write(tmp_path, dict.fromkeys(names, 1))
    with pytest.raises(ValueError, match=f"mistakes={tmp_path}: "):
        read(tmp_path)
