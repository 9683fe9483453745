import pytest
import torch
from composed import FEW, SMALL, composed
from helpers.commands import read_results
from helpers.repairs import QUIET, TRIALS, changed

from lora_mnist.classifier.weights_file import read_base
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.errors import UserError
from lora_mnist.training import run_training, trials
from lora_mnist.training.trials import resolve_augment


def test_a_drawn_order_is_drawn_once(go, monkeypatch):
    """At the place where a plain DataLoader draws it, as in the notebook."""
    seeds, build_datamodule = [], run_training.build_datamodule

    def kept(*arguments, **options):
        made = build_datamodule(*arguments, **options)
        seeds.append(made.plan.seed)
        return made

    monkeypatch.setattr(run_training, "build_datamodule", kept)
    go("drawn", *QUIET, *TRIALS, "batches.seed=null")
    assert len(seeds) == 2
    assert len({*seeds}) == 1


def test_a_refit_has_the_share_of_the_loss_that_its_trial_has(go, monkeypatch):
    shares, fit = [], run_training.fit

    def remembering(session, cfg, *parts):
        shares.append(cfg.loss.target_weight)
        return fit(session, cfg, *parts)

    monkeypatch.setattr(run_training, "fit", remembering)
    heavy = ("loss=weighted", "+trials={heavy: {loss.target_weight: 0.9}}", "refit=true")
    go("heavy", *QUIET, *heavy)
    assert shares == [0.9, 0.9]


def test_the_choice_says_that_many_images_need_one_trial(go, monkeypatch):
    monkeypatch.setattr(trials, "FEW_IMAGES", 300)
    choice = read_results(go("many", *QUIET, *TRIALS))["choices"]["trial"]
    assert choice["value"] == "high"
    assert [reason["code"] for reason in choice["reasons"]] == ["many_images_one_trial"]


@pytest.mark.parametrize("command_line", [True, False])
def test_a_trial_fills_what_is_auto_and_nothing_else(go, caplog, command_line):
    """A value that is set counts for all, wherever it stands; equal trials are one."""
    caplog.set_level("INFO", "lora_mnist")
    own = ("lora.dropout=0.05", "optimizer.lr=0.003")
    folder = go(f"set {command_line}", *QUIET, *TRIALS, *own, command_line=command_line)
    assert not changed(folder, go("alone low", *QUIET, "lora.dropout=0.05"))
    assert len(read_results(folder)["choices"]["trial"]["of"]) == 1
    assert "trials.high: optimizer.lr=0.003 is set, so 0.01 is not used" in caplog.text
    assert "trials: no two differ" in caplog.text


def test_images_are_changed_as_in_the_bases_training(go, tmp_path):
    """A base's file says how; a trial may do otherwise."""
    base, settings = f"base_ckpt={tmp_path}/own.ckpt", (*QUIET, *SMALL, *FEW)
    options = ("stage=pretrain", "augment=shift", "trainer.max_steps=20", "trainer.max_epochs=-1")
    train(composed("train", *options, *settings, base), Run(tmp_path / "pretrain"))
    asked = (*QUIET, base, "augment=auto", "+trials={as_base: {lora.dropout: 0}}")
    auto = go("auto", *asked)
    assert read_results(auto)["choices"]["augment"]["value"]["_target_"] == "lora_mnist.data.Shift"
    assert not changed(auto, go("shift", *QUIET, base, "augment=shift"))
    plain = go("plain", *QUIET, base)
    assert changed(auto, plain)
    otherwise = ("batches.augmented=auto", "+trials={none: {batches.augmented: false}}")
    assert not changed(plain, go("none", *QUIET, base, "augment=auto", *otherwise))
    assert not changed(plain, go("none of those named", *QUIET, base, "augment=flip", *otherwise))
    assert not changed(auto, go("all", *asked, "batches.augmented=auto"))
    content = torch.load(tmp_path / "own.ckpt", weights_only=True)
    content["state_dict"]["linear1.bias"] += 0.01
    torch.save(content["state_dict"], tmp_path / "strange.pt")
    repaired = go("strange", *QUIET, f"base_ckpt={tmp_path}/strange.pt", "augment=flip", "digit=4")
    (kept,) = auto.parents[1].glob(f"base/*-{read_results(repaired)['base_sha256'][:12]}.ckpt")
    assert not read_base(kept).record.knows_augment  # that of the repair is not the base's
    content["record"]["made"]["augment"] = {"_target_": "my.Augment", "share": 0.1}
    torch.save(content, tmp_path / "own.ckpt")
    with pytest.raises(UserError, match=r"^batches.augment=auto: .* my.Augment, code of its maker"):
        go("foreign", *asked)


@pytest.mark.parametrize(
    ("command_line", "names"),
    [
        (("augment=[shift,flip]",), ["Shift", "RandomHorizontalFlip"]),
        (("augment=[flip,shift]",), ["RandomHorizontalFlip", "Shift"]),
        (("augment=[flip,shift]", "batches.augment.flip=null"), ["Shift"]),
        (("augment=[none,crop]",), ["Shift"]),
        (("augment=trivial",), ["TrivialAugmentWide"]),
        (
            ("augment=flip", "+batches.augment.own={_target_: my.Own}"),
            ["RandomHorizontalFlip", "Own"],
        ),
        (("batches.augment={_target_: my.Own}",), ["Own"]),
        (("augment=none",), []),
    ],
)
def test_augmentations_are_composed_in_the_order_given(command_line, names):
    """One alone is itself."""
    changes = resolve_augment(composed("train", "stage=lora", *command_line), None)
    if len(names) > 1:
        assert changes["_target_"] == "torchvision.transforms.v2.Compose"
        changes = changes["transforms"]
    else:
        changes = [changes] if changes else []
    assert [change["_target_"].rpartition(".")[2] for change in changes] == names


def test_an_augmentation_is_no_word_but_auto():
    with pytest.raises(UserError, match=r"^batches.augment=flip: expected a transform, "):
        resolve_augment(composed("train", "stage=lora", "batches.augment=flip"), None)


@pytest.mark.parametrize(
    ("overrides", "few"),
    [(("digit=[9,4]",), 300), (("data.val_size=0", "lora.scale=1"), 400)],
    ids=["many images", "no validation images"],
)
def test_nothing_is_chosen_where_nothing_can_be(go, monkeypatch, overrides, few):
    """Of several classes the rarest counts: these have 350 images each."""
    monkeypatch.setattr(trials, "FEW_IMAGES", few)
    folder = go(overrides[0], *QUIET, *TRIALS, "refit=auto", *overrides)
    choices = read_results(folder)["choices"]
    assert (choices["trial"]["value"], choices["refit"]["value"]) == ("high", False)
