"""Trainings that tests of several files start. Nothing here imports torch at once, as above."""

import pytest


@pytest.fixture(scope="session")
def go(tmp_path_factory):
    """``go(NAME, *overrides)`` trains in a folder, once for all tests; it returns the folder."""
    from composed import composed, small_base
    from helpers.repairs import RECIPE

    from lora_mnist.commands.train import train
    from lora_mnist.config.run import Run

    outputs = tmp_path_factory.mktemp("trials")
    small_base(outputs)

    def run(name, *overrides, command_line=False):
        folder = outputs / "lora" / name
        if not (folder / "results.json").exists():
            cfg = composed("train", *RECIPE, f"paths.outputs={outputs}", *overrides)
            train(cfg, Run(folder, overrides if command_line else None))
        return folder

    return run


@pytest.fixture
def start(tmp_path, monkeypatch):
    """``start("run", *overrides)`` trains in tmp_path/run; it may ``crash`` before a step."""
    from composed import FEW, SMALL, composed, small_base
    from helpers.callbacks import CRASH, Crash, Crashed

    from lora_mnist.commands.train import train
    from lora_mnist.config.run import Run

    base = small_base(tmp_path / "outputs")

    def run(name, *overrides, crash=-1):
        folder = tmp_path / name
        is_base = "stage=pretrain" in overrides
        path = f"base_ckpt={folder}/base.ckpt" if is_base else f"base_ckpt={base}"
        monkeypatch.setenv("CRASH", str(crash))
        monkeypatch.setattr(Crash, "trainings", 0)
        options = (*SMALL, *FEW, CRASH, f"paths.outputs={tmp_path}/outputs", "logger=none", path)
        try:
            train(composed("train", *options, *overrides), Run(folder))
        except Crashed:
            assert crash != -1
        return folder

    return run
