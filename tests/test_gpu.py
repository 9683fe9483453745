"""Both stages on a GPU: the same proof, files that any machine reads.

pytest -m gpu -n 0
"""

import pytest
import torch
from helpers.commands import ROOT, only_run, read_results

from lora_mnist import MLP, add_lora
from lora_mnist.data import MNIST
from lora_mnist.repair.module import Loss
from lora_mnist.repair.predictions import columns_of


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_nothing_of_a_step_stays_on_the_cpu(init):
    """On the device meta, which knows shapes alone, and refuses tensors of another device."""
    net = add_lora(MLP(hidden_sizes=[16]), init=init, dropout=0.5).to("meta")
    images = torch.empty(4, 1, 28, 28, dtype=torch.uint8, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    logits = net(MNIST(data_dir=ROOT / "data").normalise(images))
    Loss(target_weight=0.5)(logits, labels, replayed=2).backward()
    for column in columns_of(logits, labels):
        assert column.shape == (4,)
        assert column.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_both_stages_with_the_same_numbers_twice(cli, tmp_path):
    on_gpu, bases = ("trainer=gpu", "figures=false"), set()
    for _ in range(2):
        cli("train.py", "stage=pretrain", "trainer.max_steps=300", *on_gpu).ok()
        bases.add((tmp_path / "outputs" / "base" / "mnist.ckpt").read_bytes())
    assert len(bases) == 1
    replay = ("trainer.max_steps=50", "batches.replay=20")
    cli("train.py", "stage=lora", "digit=9", *replay, *on_gpu).ok()
    results = read_results(only_run(tmp_path / "outputs", "lora"))
    assert results["base_unchanged"]
    assert results["test_base"]["accuracy"] > 0.8

    # The files do not remember the device: the same answers on the CPU, but for rounding.
    cli("eval.py", "adapter=latest", "trainer=cpu").ok()
    on_cpu = read_results(only_run(tmp_path / "outputs", "eval"))
    assert abs(on_cpu["test"]["errors"] - results["test"]["errors"]) <= 5
