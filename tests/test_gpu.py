"""Both stages on a GPU: the same proof, files that any machine reads.

pytest -m gpu -n 0
"""

import pytest
import torch
from helpers.commands import only_run, read_results


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
