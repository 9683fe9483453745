"""Both stages on a GPU: the same proof, files that any machine reads.

pytest -m gpu -n 0
"""

import pytest
import torch
from helpers.commands import only_run, read_results

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize("lora", [(), ("batches.replay=20",)])
def test_both_stages(cli, tmp_path, lora):
    common = ("trainer=gpu", "figures=false")
    cli("train.py", "stage=pretrain", "trainer.max_steps=300", *common).ok()
    cli("train.py", "stage=lora", "digit=9", "trainer.max_steps=50", *lora, *common).ok()
    found = read_results(only_run(tmp_path / "outputs", "lora"))
    assert found["base_unchanged"]
    assert found["test_base"]["accuracy"] > 0.8

    # The files do not remember the device: the same answers on the CPU, but for rounding.
    cli("eval.py", "adapter=latest", "trainer=cpu").ok()
    on_cpu = read_results(only_run(tmp_path / "outputs", "eval"))
    assert abs(on_cpu["test"]["errors"] - found["test"]["errors"]) <= 5


def test_the_same_numbers_twice(cli, tmp_path):
    command = ("train.py", "stage=pretrain", "trainer.max_steps=50", "trainer=gpu", "figures=false")
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        cli(*command, f"hydra.run.dir={run}", f"base_ckpt={run}.ckpt").ok()
    first, second = map(read_results, runs)
    assert first["base_sha256"] == second["base_sha256"]
