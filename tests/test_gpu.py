"""Trainings and commands on a GPU: the same proof, the same numbers twice, files for any machine.

pytest -m gpu -n 0
"""

import pytest
import torch
from helpers.commands import only_run, read_results
from helpers.stranger import take_pictures

from lora_mnist.data import folder

#: trainer=cpu shows without a GPU whether the tests themselves are right.
ON_GPU = ("trainer=gpu", "figures=false")
WITHOUT_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.gpu
@WITHOUT_GPU
def test_both_stages_with_the_same_numbers_twice(cli, tmp_path):
    bases = set()
    for _ in range(2):
        cli("train.py", "stage=pretrain", "trainer.max_steps=300", *ON_GPU).ok()
        bases.add((tmp_path / "outputs" / "base" / "mnist.ckpt").read_bytes())
    assert len(bases) == 1
    replay = ("trainer.max_steps=50", "batches.replay=20")
    cli("train.py", "stage=lora", "digit=9", *replay, *ON_GPU).ok()
    results = read_results(only_run(tmp_path / "outputs", "lora"))
    assert results["base_unchanged"]
    assert results["test_base"]["accuracy"] > 0.8

    # The files do not remember the device: the same answers on the CPU, but for rounding.
    cli("eval.py", "adapter=latest", "trainer=cpu").ok()
    on_cpu = read_results(only_run(tmp_path / "outputs", "eval"))
    assert abs(on_cpu["test"]["errors"] - results["test"]["errors"]) <= 5


#: What each part of a repair is made of, on a folder of pictures that workers read.
REPAIRS = {
    "batch normalization": ("lora.init=gaussian",),
    "pissa and an average": ("lora=pissa", "callbacks=[default,averaging]"),
    "bfloat16": ("lora=pissa", "trainer.precision=bf16-mixed"),
}


@pytest.mark.gpu
@WITHOUT_GPU
@pytest.mark.parametrize("kind", REPAIRS)
def test_a_repair_of_convolutions_on_a_folder(cli, tmp_path, monkeypatch, kind):
    """Twice the same, beside the base as it was; and each command computes there."""
    monkeypatch.setattr(folder, "MAX_IN_MEMORY", 0)
    take_pictures(tmp_path / "photos", size=(32, 32))
    here = ("data=folder", f"data.data_dir={tmp_path}/photos", "data.num_workers=2")
    made = ("net=custom", "net._target_=torchvision.models.resnet18", "net.num_classes=3")
    cli("train.py", "stage=pretrain", *here, *made, "trainer.max_steps=20", *ON_GPU).ok()
    adapters = set()
    for number in range(2):
        run = tmp_path / f"run{number}"
        options = (*here, *made, *REPAIRS[kind], *ON_GPU, "target=dog", "batches.replay=4")
        options += ("trainer.max_steps=9", "trainer.val_check_interval=3", f"hydra.run.dir={run}")
        cli("train.py", "stage=lora", *options).ok()
        assert read_results(run)["base_unchanged"]
        adapters.add((run / "adapter" / "adapter_model.safetensors").read_bytes())
    assert len(adapters) == 1
    where = (f"adapter={run}", f"accelerator={ON_GPU[0].partition('=')[2]}", *made)
    cli("predict.py", f"images={tmp_path}/photos/dog", *where).ok()
    cli("export.py", f"out={tmp_path}/dog.safetensors", *where, *here).ok()


@pytest.mark.gpu
@WITHOUT_GPU
def test_a_thousand_classes(cli, tmp_path):
    classes = [f"c{number:03}" for number in range(1000)]
    take_pictures(tmp_path / "photos", dict.fromkeys(classes, 3), (8, 8))
    here = ("data=folder", f"data.data_dir={tmp_path}/photos", "trainer.max_steps=3")
    made = ("net=custom", "net._target_=lora_mnist.CNN", "net.in_channels=3", "net.image_size=8")
    options = (*here, *made, "net.num_classes=1000", *ON_GPU)
    assert "no more than by always saying" in cli("train.py", "stage=pretrain", *options).err
