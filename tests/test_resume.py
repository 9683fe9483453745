from pathlib import Path
from typing import Any

import pytest
import torch
from composed import SMALL, composed, small_base
from helpers.commands import read_results
from safetensors.torch import load_file

from lora_mnist.errors import UserError
from lora_mnist.lora import WEIGHTS_NAME, changed_tensors
from lora_mnist.train import train


class Runs:
    """Runs of the small network, in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = small_base(folder / "outputs")

    def train(self, name: str, *overrides: str, **more: str) -> dict[str, Any]:
        options = {"stage": "lora", "base_ckpt": str(self.base), "trainer.max_steps": "4", **more}
        cfg = composed(
            "train",
            *(f"{key}={value}" for key, value in options.items()),
            *(*SMALL, "logger=none", f"paths.outputs={self.folder}/outputs", *overrides),
        )
        (self.folder / name).mkdir()
        return train(cfg, self.folder / name)

    def checkpoint(self, name: str) -> Path:
        return self.folder / name / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    runs.train("first")
    runs.train("pretrained", stage="pretrain", base_ckpt=f"{runs.folder}/new.ckpt")
    return runs


def test_goes_on_where_the_checkpoint_ends(runs: Runs) -> None:
    more = {"trainer.max_steps": "6", "ckpt_path": str(runs.checkpoint("first"))}
    assert runs.train("more", **more)["steps"] == 6
    assert read_results(runs.folder / "more")["base_unchanged"] is True
    adapters = [
        load_file(runs.folder / name / "adapter" / WEIGHTS_NAME) for name in ("first", "more")
    ]
    assert changed_tensors(*adapters)
    saved = torch.load(runs.checkpoint("more"), weights_only=True)
    assert saved["global_step"] == 6


def test_goes_on_with_pretraining(runs: Runs) -> None:
    more = {"trainer.max_steps": "6", "ckpt_path": str(runs.checkpoint("pretrained"))}
    more["trainer.max_epochs"] = "2"  # the checkpoint ends an epoch
    base = f"{runs.folder}/newer.ckpt"
    assert runs.train("pretrained more", stage="pretrain", base_ckpt=base, **more)["steps"] == 6


@pytest.fixture
def other_base(runs: Runs, tmp_path: Path) -> Path:
    """A base of the same shape, one bias moved."""
    other = torch.load(runs.base, weights_only=True)
    other["state_dict"]["linear1.bias"] += 1
    torch.save(other, tmp_path / "other.ckpt")
    return tmp_path / "other.ckpt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "pretrain"}, "expected a checkpoint of stage=pretrain, not lora"),
        ({"stage": "finetune"}, "expected a checkpoint of stage=finetune, not lora"),
        ({"lora.rank": "4"}, "expected lora={'rank': 4, .*it was trained with lora={'rank': 1,"),
        ({"base_ckpt": "{other}"}, "expected base_sha256=.*; it was trained with base_sha256="),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    runs: Runs, other_base: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    checkpoint = runs.checkpoint("first")
    options = {key: value.replace("{other}", str(other_base)) for key, value in options.items()}
    if options.get("stage") == "pretrain":
        options["base_ckpt"] = f"{tmp_path}/new.ckpt"
    name = "refused-" + "".join(c for c in str(options) if c.isalnum())[:80]
    with pytest.raises(UserError, match=f"^ckpt_path={checkpoint}: {message}"):
        runs.train(name, ckpt_path=str(checkpoint), **options)
    assert not list((runs.folder / name).iterdir())
    assert not (tmp_path / "new.ckpt").exists()


@pytest.mark.parametrize("steps", [2, 4])
def test_a_checkpoint_that_leaves_nothing_to_do_is_refused(runs: Runs, steps: int) -> None:
    options = {"ckpt_path": str(runs.checkpoint("first")), "trainer.max_steps": str(steps)}
    message = f"^trainer.max_steps={steps}: expected more than the 4 steps of ckpt_path="
    with pytest.raises(UserError, match=message):
        runs.train(f"nothing to do {steps}", **options)


@pytest.mark.parametrize("content", [None, b"", b"text", {"state_dict": {}}, {"a": torch.ones(1)}])
def test_no_checkpoint_at_all(runs: Runs, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    message = f"^ckpt_path={path}: expected a checkpoint of stage=lora; this file is damaged or "
    with pytest.raises(UserError, match=message):
        runs.train(f"no checkpoint {tmp_path.name}", ckpt_path=str(path))
