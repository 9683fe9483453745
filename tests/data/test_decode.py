import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from lora_mnist.data import decode as module
from lora_mnist.data.decode import Form, OtherSizeError, decode, read_pictures
from lora_mnist.data.listing import Entry, list_images

Maker = Callable[..., Path]
PETS = ["cat", "dog"]


def noise(path: Path, size: tuple[int, int], mode: str = "RGB", **options: Any) -> Path:
    pixels = numpy.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (16, 99), (16, 16), (7, 5)])
def test_equals_torchvisions_resize_and_centre_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    path = noise(tmp_path / "x.png", size)
    expected = v2.Compose([v2.Resize(16), v2.CenterCrop(16), v2.PILToTensor()])
    assert torch.equal(decode(path, Form(16, 16, 3, "crop")), expected(default_loader(path)))
    expected = v2.Compose([v2.Resize((16, 16)), v2.PILToTensor()])
    assert torch.equal(decode(path, Form(16, 16, 3, "stretch")), expected(default_loader(path)))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (99, 16), (5, 7)])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_height_and_width_may_differ(tmp_path: Path, size: tuple[int, int], resize: str) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", size, (200, 100, 50)).save(path)
    image = decode(path, Form(12, 20, 3, resize))
    assert image.shape == (3, 12, 20)
    assert image.flatten(1).amin(1).tolist() == image.flatten(1).amax(1).tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_colour_or_grey(tmp_path: Path, mode: str) -> None:
    path = noise(tmp_path / "x.tiff", (9, 9), mode)
    assert decode(path, Form(9, 9, 3, "crop")).shape == (3, 9, 9)
    grey = decode(path, Form(9, 9, 1, "crop"))
    assert grey.shape == (1, 9, 9)
    assert grey.min() < grey.max()


def test_sixteen_bits_are_not_clipped(tmp_path: Path) -> None:
    levels = torch.linspace(0, 65535, 81).view(9, 9).to(torch.uint16)
    Image.fromarray(levels.numpy()).save(tmp_path / "x.png")
    image = decode(tmp_path / "x.png", Form(9, 9, 1, "crop"))
    assert torch.equal(image[0], (levels.int() >> 8).to(torch.uint8))


def test_pictures_are_not_turned_as_imagefolder_does_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = noise(tmp_path / "x.png", (8, 4), exif=exif)
    assert decode(path, Form(4, 8, 3, "crop", exact=True)).shape == (3, 4, 8)


def test_an_exact_form_refuses_other_sizes(tmp_path: Path) -> None:
    with pytest.raises(OtherSizeError, match="4x8"):
        decode(noise(tmp_path / "x.png", (8, 4)), Form(8, 8, 3, "crop", exact=True))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut off"])
def test_what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match="no readable picture"):
        decode(tmp_path / "x.png", Form(8, 8, 3, "crop"))
    Image.fromarray(numpy.full((8, 8), numpy.nan, numpy.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="no readable picture"):
        decode(tmp_path / "x.tiff", Form(8, 8, 3, "crop"))


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_poor_machine_is_no_broken_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    path = noise(tmp_path / "x.png", (8, 4))
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)):
        decode(path, Form(8, 8, 3, "crop"))


FORM = Form(8, 8, 3, "crop")


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_strip_is_not_scaled_to_gigabytes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a strip of .* pixels, too narrow to be scaled"):
        decode(tmp_path / "a.png", Form(64, 64, 3, "crop"))
    assert decode(tmp_path / "a.png", Form(32, 32, 3, "stretch")).shape == (3, 32, 32)


def test_reads_in_the_order_of_the_entries(make_photos: Maker) -> None:
    root = make_photos({"cat": 20, "dog": 10})
    entries = list_images(root, PETS)[::-1]
    pictures = read_pictures(root, entries, FORM, None)
    assert pictures.images.shape == (30, 3, 8, 8)
    assert pictures.indices.tolist() == list(range(30))
    for image, entry in zip(pictures.images, entries, strict=True):
        assert torch.equal(image, decode(root / entry.path, FORM))


@pytest.mark.parametrize("cached", [False, True])
def test_broken_images_are_named_and_left_out(
    make_photos: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture, cached: bool
) -> None:
    root = make_photos({"cat": 20, "dog": 2})
    for i in range(12):
        (root / "cat" / f"{i}.png").write_bytes(b"broken")
    entries = list_images(root, PETS)
    for _ in range(2):
        caplog.clear()
        pictures = read_pictures(root, entries, FORM, tmp_path / "cache" if cached else None)
        assert len(pictures.images) == 10
        assert [entries[i].path for i in pictures.indices][:2] == ["cat/12.png", "cat/13.png"]
        assert next(iter(pictures.skipped)) == "cat/0.png"
        assert "cat/0.png: skipped: no readable picture (UnidentifiedImageError)" in caplog.text
        assert "12 of 22 images skipped, which cannot be read" in caplog.text
        assert len(caplog.records) == 11


def test_what_is_no_file_is_named_and_left_out(
    make_photos: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_photos({"cat": 1, "dog": 1})
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "link.png").symlink_to("nowhere")
    (root / "cat" / "\x1b[2J[nope].png").write_bytes(b"broken")
    pictures = read_pictures(root, list_images(root, PETS), FORM, None)
    assert len(pictures.images) == 2
    assert "pipe.png: skipped: no readable picture (not a file)" in caplog.text
    assert "link.png: skipped: no readable picture (FileNotFoundError)" in caplog.text
    assert "cat/\\x1b[2J[nope].png: skipped" in caplog.text


def test_all_images_broken(make_photos: Maker, tmp_path: Path) -> None:
    root = make_photos({"cat": 1, "dog": 1})
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    for _ in range(2):
        pictures = read_pictures(root, list_images(root, PETS), FORM, tmp_path / "cache")
        assert len(pictures.images) == len(pictures.indices) == 0


class Counting:
    """Counts how often images are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = module.decode

        def decode(path: Path, form: Form) -> torch.Tensor:
            self.count += 1
            return original(path, form)

        monkeypatch.setattr(module, "decode", decode)


def test_the_sha256_is_that_of_paths_and_pixels(make_photos: Maker, tmp_path: Path) -> None:
    root = make_photos({"cat": 2, "dog": 2})

    def found(cache: Path | None) -> str:
        return read_pictures(root, list_images(root, PETS), FORM, cache).sha256

    first = found(None)
    assert first == found(tmp_path / "cache") == found(tmp_path / "cache")  # from the cache too
    photo = root / "cat" / "0.png"
    photo.rename(root / "dog" / "9.png")
    assert found(tmp_path / "cache") == found(None) != first
    Image.new("RGB", (8, 8)).save(photo)
    (root / "dog" / "9.png").unlink()
    assert found(tmp_path / "cache") == found(None) != first


def test_what_has_not_changed_comes_from_the_cache(
    make_photos: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = make_photos({"cat": 2, "dog": 2}), tmp_path / "cache"
    decoded = Counting(monkeypatch)

    def read(form: Form = FORM) -> torch.Tensor:
        return read_pictures(root, list_images(root, PETS), form, cache).images

    first = read()
    assert torch.equal(read(), first)
    assert decoded.count == 4
    noise(root / "cat" / "1.png", (8, 8), "L")
    changed = read()
    assert decoded.count == 8
    assert not torch.equal(changed, first)
    read(Form(8, 8, 1, "crop"))
    assert decoded.count == 12
    assert torch.equal(read(), changed)
    assert decoded.count == 12
    assert len(list(cache.glob("photos-*.safetensors"))) == 2
    assert {path.name for path in root.iterdir()} == {"cat", "dog"}


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None])
def test_a_damaged_cache_is_written_anew(
    make_photos: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    root, cache = make_photos({"cat": 2, "dog": 2}), tmp_path / "cache"
    entries = list_images(root, PETS)
    first = read_pictures(root, entries, FORM, cache)
    (path,) = cache.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    decoded = Counting(monkeypatch)
    for _ in range(2):
        assert torch.equal(read_pictures(root, entries, FORM, cache).images, first.images)
    assert decoded.count == 4


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    make_photos: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_photos({"cat": 2, "dog": 2})
    (tmp_path / "file").touch()
    pictures = read_pictures(root, list_images(root, PETS), FORM, tmp_path / "file" / "cache")
    assert len(pictures.images) == 4
    assert "cannot be written, so images are read anew each time" in caplog.text


def test_a_full_disk_leaves_no_torn_cache(
    make_photos: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_: Any, path: Path, __: Any) -> None:
        path.write_bytes(b"torn")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", save)
    root = make_photos({"cat": 2, "dog": 2})
    pictures = read_pictures(root, list_images(root, PETS), FORM, tmp_path / "cache")
    assert len(pictures.images) == 4
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])


def test_a_vanished_file_is_a_broken_image(make_photos: Maker) -> None:
    root = make_photos({"cat": 2, "dog": 2})
    entries = [*list_images(root, PETS), Entry("dog/gone.png", 1, "", 5, 5)]
    pictures = read_pictures(root, entries, FORM, None)
    assert pictures.skipped == {"dog/gone.png": "no readable picture (FileNotFoundError)"}
