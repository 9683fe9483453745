"""CIFAR's binary version, of a handful of images that are written here."""

import hashlib
import json
import tarfile

import pytest
import torch
from composed import composed, load_adapter_tensors
from helpers.commands import read_results

from lora_mnist import load_classifier
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.data import CIFAR
from lora_mnist.data.cifar import DATASETS

#: Of each file.
COUNT = 30


@pytest.fixture(autouse=True)
def _of_few_images(monkeypatch):
    """Say so."""
    for name, version in DATASETS.items():
        few = (COUNT * len(version.test), COUNT * len(version.train))
        monkeypatch.setitem(DATASETS, name, version._replace(images=few))


def write_cifar(data_dir, dataset="CIFAR10"):
    """The files of the data set with a few images, noise in a shade of its class; the images."""
    version = DATASETS[dataset]
    folder = data_dir / version.folder
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    images = {}
    for name in (*version.train, *version.test):
        labels = torch.arange(COUNT) % 10
        pixels = torch.randint(0, 30, (COUNT, 3, 32, 32), generator=generator)
        pixels = (pixels + 20 * labels.view(-1, 1, 1, 1)).byte()
        coarse = torch.full((COUNT, version.label_bytes - 1), 9)
        rows = torch.cat([coarse.byte(), labels.byte()[:, None], pixels.flatten(1)], dim=1)
        (folder / name).write_bytes(rows.numpy().tobytes())
        images[name] = pixels
    return images


@pytest.mark.parametrize("dataset", DATASETS)
def test_images_are_read_where_they_lie(tmp_path, dataset):
    """One byte of label, or two, the last of which counts; red, green and blue, row by row."""
    written = write_cifar(tmp_path, dataset)
    data = CIFAR(dataset, tmp_path, val_size=5)
    images = data.sets
    first, *_, last = written.values()
    assert torch.equal(images.train.take(range(25))[0], first[:25])
    assert torch.equal(images.test.take(range(COUNT))[0], last)
    assert images.test.labels.tolist() == [number % 10 for number in range(COUNT)]
    assert len(images.train) + len(images.val) == COUNT * len(DATASETS[dataset].train)
    assert len(images.val) == 5
    assert (data.classes[1], data.classes[-1]) == {
        "CIFAR10": ("automobile", "truck"),
        "CIFAR100": ("aquarium_fish", "worm"),
    }[dataset]
    assert len(data.classes) == int(dataset.removeprefix("CIFAR"))


def lay_archive(tmp_path, monkeypatch):
    """The images of an archive that lies in the data's folder, and where what it holds belongs."""
    version = DATASETS["CIFAR10"]
    written = write_cifar(tmp_path / "whole")
    archive = tmp_path / version.archive
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "whole" / version.folder, version.folder)
    version = version._replace(md5=hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setitem(DATASETS, "CIFAR10", version)
    return written, tmp_path / version.folder


DAMAGES = {
    "empty": lambda _: b"",
    "half of an image": lambda content: content[:1000],
    "seven images": lambda content: content[: 7 * 3073],
    "another label": lambda content: bytes([9]) + content[1:],
}


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_an_archive_that_lies_there_is_unpacked_where_a_file_is_damaged(
    tmp_path, monkeypatch, damage
):
    """Without a network; where nothing is to be fetched it is refused."""
    written, folder = lay_archive(tmp_path, monkeypatch)
    whole = torch.cat([written[f"data_batch_{number}.bin"] for number in range(1, 6)])
    assert torch.equal(CIFAR(data_dir=tmp_path).load(train=True)[0], whole)
    file = folder / "data_batch_4.bin"
    before = file.read_bytes()
    file.unlink()
    if damage in DAMAGES:
        file.write_bytes(DAMAGES[damage](before))
    with pytest.raises(ValueError, match=f"^data_dir={tmp_path}: expected .*damaged; to download"):
        CIFAR(data_dir=tmp_path, download=False).load(train=True)
    assert torch.equal(CIFAR(data_dir=tmp_path).load(train=True)[0], whole)
    assert file.read_bytes() == before


def test_what_cannot_be_downloaded_is_named_with_its_address_and_its_place(tmp_path, monkeypatch):
    """And nothing new stays; an archive with another checksum is downloaded anew."""
    monkeypatch.setattr("lora_mnist.data.cifar._URL", "file:///nowhere/")
    version, new = DATASETS["CIFAR10"], tmp_path / "new" / "images"
    expected = (
        f"expected {version.archive} of file:///nowhere/ there, .* in .*{version.folder}; some"
    )
    with pytest.raises(ValueError, match=f"^data_dir={new}: {expected} .*cannot be downloaded"):
        CIFAR(data_dir=new).load(train=True)
    assert not new.parent.exists()
    (tmp_path / version.archive).write_bytes(b"no archive")
    with pytest.raises(ValueError, match=f"^data_dir={tmp_path}: {expected}"):
        CIFAR(data_dir=tmp_path).load(train=True)
    assert not (tmp_path / version.folder).exists()


def test_an_error_in_code_is_no_damaged_file(tmp_path):
    write_cifar(tmp_path)
    with pytest.raises(TypeError):
        CIFAR(data_dir=tmp_path).load("train")


def test_a_base_is_trained_and_repaired_and_its_record_says_all(tmp_path):
    """The experiment's, with few steps; a list of augmentations is the base's, in its order."""
    write_cifar(tmp_path / "data")
    outputs = tmp_path / "outputs"
    own = (f"data.data_dir={tmp_path}/data", "data.val_size=30", f"paths.outputs={outputs}")
    own += ("trainer=cpu", "logger=none", "callbacks=none", "figures=false", "trainer.max_steps=4")
    base = ("experiment=cifar10", "net.depth=8", "batches.batch_size=30", *own)
    train(composed("train", *base, "trainer.max_steps=12"), Run(tmp_path / "pretrain"))
    made = torch.load(outputs / "base" / "cifar10_resnet.ckpt", weights_only=True)["record"]["made"]
    names = [each["_target_"].rpartition(".")[2] for each in made["augment"]["transforms"]]
    assert names == ["Shift", "RandomHorizontalFlip"]
    repairs = []
    for augment in ("augment=auto", "augment=[crop,flip]", "augment=[crop,flip,trivial]"):
        repair = ("stage=lora", "data=cifar10", "net=resnet20", "net.depth=8", "target=cat", *own)
        folder = outputs / "lora" / str(len(repairs))
        train(composed("train", *repair, augment), Run(folder))
        repairs.append(folder)
    tensors = []
    for folder in repairs:
        adapter = load_adapter_tensors(folder)
        tensors.append(json.dumps({name: each.tolist() for name, each in adapter.items()}))
    assert tensors[0] == tensors[1] != tensors[2]
    assert read_results(repairs[0])["base_unchanged"]
    classifier = load_classifier(adapter=repairs[0], base=outputs / "base" / "cifar10_resnet.ckpt")
    assert classifier.classes[3] == "cat"
    assert classifier.dataset.data_dir == tmp_path / "data"
