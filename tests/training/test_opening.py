from pathlib import Path

import pytest
import torch
from composed import composed, logged, run
from helpers.commands import refused
from helpers.repairs import QUIET
from helpers.stranger import config, move_in

from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.run import Run
from lora_mnist.errors import UserError
from lora_mnist.training.opening import open_session
from lora_mnist.training.session import Session

NINES = ("stage=lora", "digit=9")


def of_probabilities():
    """The stranger's network, ended by a softmax."""
    from nets_of_a_stranger import Net

    net = Net()
    net.register_forward_hook(lambda *arguments: arguments[-1].softmax(1))
    return net


def test_a_scale_of_no_adapter_is_refused_before_its_base_is_read(tmp_path):
    """There is none in this folder."""
    cfg, run = composed("eval", "offset=1", f"paths.outputs={tmp_path}"), Run(tmp_path / "run")
    assert refused(open_session, resolve_configuration(cfg, run), run).startswith("offset=1: ")


def test_a_folder_with_anything_in_it_is_no_new_one(tmp_path):
    (tmp_path / "mine.txt").touch()
    said = refused(open_session, composed("eval"), Run(tmp_path))
    assert said == f"hydra.run.dir={tmp_path}: has a mine.txt already; expected a new folder"


@pytest.mark.parametrize(
    "mistake",
    [
        f"net._target_={__name__}.of_probabilities -> net: ",
        "lora.target_modules=[nose]",
        "+loss.nope=2 -> loss: TypeError: ",
        "callbacks=best -> callbacks: ",
    ],
)
def test_what_needs_no_image_is_refused_before_images_are_read(tmp_path, monkeypatch, mistake):
    """A picture that cannot be read would be named."""
    move_in(tmp_path, monkeypatch)
    Path("photos/emu/7.png").write_text("no picture")
    wrong, _, start = mistake.partition(" -> ")
    run = Run(tmp_path / "run")
    cfg = config("train", "stage=lora", "target=dog", "trainer=cpu", wrong)
    with logged("lora_mnist") as log:
        said = refused(open_session, resolve_configuration(cfg, run), run)
    assert said.startswith(start or wrong)
    assert "7.png" not in log.getvalue()


@pytest.mark.parametrize(
    ("more", "start"),
    [
        ("+trials.more={lora.rank: 4}", "trials.more.lora.rank: expected some of "),
        ("+trials.more={optimizer.lr: fast}", "trials.more.optimizer.lr=fast: "),
        ("+trials.more={lora.dropout: 1}", "trials.more.lora.dropout=1: "),
        ("+trials.more=3", "trials.more=3: expected some of "),
        ("+trials.more={batches.augmented: maybe}", "trials.more.batches.augmented=maybe: "),
        ("+trials.more={batches.augment: null}", "trials.more.batches.augment: "),
        ("+trials.more={loss.target_weight: 2}", "trials.more.loss.target_weight=2: "),
        ("+trials.more={scheduler: {_target_: os.No}}", "trials.more.scheduler: "),
    ],
)
def test_a_trial_that_cannot_be_used_is_refused_before_all_else(go, monkeypatch, more, start):
    monkeypatch.setattr(Session, "predict_split", lambda *_: pytest.fail("something is computed"))
    with pytest.raises(UserError) as caught:
        go("refused", *QUIET, "batches.augmented=auto", "+loss.target_weight=auto", more)
    assert str(caught.value).startswith(start)


def test_a_network_that_changes_its_buffers_is_refused_before_training(outputs, tmp_path):
    base = torch.load(outputs / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    torch.save({**base, "calls": torch.zeros(())}, tmp_path / "counting.pt")
    counting = ("net._target_=helpers.nets.Counting", f"base_ckpt={tmp_path}/counting.pt")
    assert refused(run, outputs, *NINES, *counting).startswith(f"{counting[0]}: ")
    assert not (outputs / "lora").exists()
