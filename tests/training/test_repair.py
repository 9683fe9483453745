"""A repair of few images: the best of its trials is kept, or learns validation images too."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from composed import FEW, SMALL, adapter_of, composed, evaluated, small_base
from helpers.commands import read_csv, read_results
from helpers.runs import at, table_of

from lora_mnist.classifier.base import read_base
from lora_mnist.classifier.learnt import read_learnt
from lora_mnist.commands.train import train
from lora_mnist.config.command import Run
from lora_mnist.errors import TrainingError, UserError
from lora_mnist.lora.adapter import read_metadata
from lora_mnist.lora.base_state import changed_tensors
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.measure import dial
from lora_mnist.measure.dial import row_at
from lora_mnist.run_paths import LAST_CHECKPOINT
from lora_mnist.training import attempt, trials
from lora_mnist.training.session import Session
from lora_mnist.training.target import choose_target
from lora_mnist.training.trials import RATES, augment_of

#: 350 nines are few.
RECIPE = (
    *("stage=lora", "digit=9", "batches.replay=20", "trainer.max_steps=12", "optimizer.lr=0.003"),
    *("lora.rank=8", "lora.init=pissa", "lora.scale=auto", *SMALL, *FEW),
)
AUTO = ("lora.dropout=auto", "optimizer.lr=auto")
LOW = "low: {lora.dropout: 0.05, optimizer.lr: 0.003}"
TRIALS = (*AUTO, f"+trials={{high: {{lora.dropout: 0.3, optimizer.lr: 0.01}}, {LOW}}}")
QUIET = ("callbacks=none", "logger=none")


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """``go(NAME, *overrides)`` trains in a folder, once for all tests; it returns the folder."""
    outputs = tmp_path_factory.mktemp("trials")
    small_base(outputs)

    def run(name, *overrides, typed=False):
        folder = outputs / "lora" / name
        if not (folder / "results.json").exists():
            cfg = composed("train", *RECIPE, f"paths.outputs={outputs}", *overrides)
            train(cfg, Run(folder, overrides if typed else None))
        return folder

    return run


def changed(one, other):
    """The names of the tensors in which two runs' adapters differ."""
    return changed_tensors(adapter_of(one), adapter_of(other))


def test_the_trial_that_is_best_on_validation_images_is_kept(go):
    """It is the training that its values alone would be, to the bit, and no further one is made."""
    chosen = go("chosen", *QUIET, *TRIALS)
    results = read_results(chosen)
    choice = results["choices"]["trial"]
    assert choice["of"] == ["high", "low"]
    assert choice["images"] == results["validation_images"] == 500
    assert results["steps"] == 12
    values = {"high": ("lora.dropout=0.3", "optimizer.lr=0.01"), "low": ("lora.dropout=0.05",)}
    measures = {}
    for name, typed in values.items():
        alone = go(f"alone {name}", *QUIET, *typed)
        measures[name] = max(row["score"] for row in read_results(alone)["dial"]["rows"])
        assert f"{measures[name]:.3f} with {name}" in choice["why"]
        assert (changed(alone, chosen) == []) == (name == choice["value"])
        if name == choice["value"]:
            for key in ("val", "test", "dial"):
                assert read_results(alone)[key] == results[key]
    assert measures[choice["value"]] == max(measures.values())


def test_a_drawn_order_is_drawn_once(go, monkeypatch):
    """At the place where a plain DataLoader draws it, as in the notebook."""
    seeds, data_of = [], attempt.data_of

    def kept(*arguments, **options):
        made = data_of(*arguments, **options)
        seeds.append(made.plan.seed)
        return made

    monkeypatch.setattr(attempt, "data_of", kept)
    go("drawn", *QUIET, *TRIALS, "batches.seed=null")
    assert len(seeds) == 2
    assert len({*seeds}) == 1


@pytest.mark.parametrize("typed", [True, False])
def test_a_trial_fills_what_is_auto_and_nothing_else(go, caplog, typed):
    """A value that is set counts for all, wherever it stands; equal trials are one."""
    caplog.set_level("INFO", "lora_mnist")
    own = ("lora.dropout=0.05", "optimizer.lr=0.003")
    folder = go(f"set {typed}", *QUIET, *TRIALS, *own, typed=typed)
    assert not changed(folder, go("alone low", *QUIET, "lora.dropout=0.05"))
    assert len(read_results(folder)["choices"]["trial"]["of"]) == 1
    assert "trials.high: optimizer.lr=0.003 is set, so 0.01 is not used" in caplog.text
    assert "trials: no two differ" in caplog.text


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
    monkeypatch.setattr(Session, "predictions", lambda *_: pytest.fail("something is computed"))
    with pytest.raises(UserError) as caught:
        go("refused", *QUIET, "batches.augmented=auto", "+loss.target_weight=auto", more)
    assert str(caught.value).startswith(start)


def test_a_training_that_diverges_ends_and_a_smaller_rate_is_tried(go, monkeypatch):
    """A scheduler, too, reads the rate that was chosen."""
    monkeypatch.setattr(trials, "RATES", (1e30, 0.003))
    options = (*QUIET, "scheduler=one_cycle", "trainer.log_every_n_steps=1")
    folder = go("steep", *options, "optimizer.lr=auto")
    rate = read_results(folder)["choices"]["rate"]
    assert rate["value"] == 0.003
    assert rate["why"].startswith("optimizer.lr=1e+30: ")
    assert not changed(folder, go("less steep", *options, "optimizer.lr=0.003"))


def test_of_several_processes_the_first_one_advises(go, monkeypatch):
    def told(self, value):
        advice = isinstance(value, tuple) and isinstance(value[0], Point)
        return (Point(0.4, 0.0), value[1]) if advice else value

    monkeypatch.setattr(Session, "of_first_process", told)
    assert read_results(go("told", *QUIET))["point"] == {"scale": 0.4, "offset": 0}


def test_a_network_that_its_maker_froze_is_repaired(go):
    usual = go("alone", *QUIET)
    base = f"base_ckpt={usual.parents[1]}/base/mnist.ckpt"
    assert not changed(usual, go("frozen", *QUIET, "net._target_=helpers.nets.FrozenMLP", base))


@pytest.mark.parametrize("adds", [True, False])
def test_a_training_that_adds_nothing_to_an_offset_has_one_more_rate(go, monkeypatch, adds):
    is_ahead = property(lambda _: adds)
    monkeypatch.setattr(attempt.Attempt, "is_ahead_of_an_offset", is_ahead)
    rates, fit = [], attempt.fit
    monkeypatch.setattr(
        attempt,
        "fit",
        lambda session, cfg, *parts: rates.append(cfg.optimizer.lr) or fit(session, cfg, *parts),
    )
    go(f"adds {adds}", *QUIET, "optimizer.lr=auto")
    assert rates == list(RATES[: 1 if adds else 2])
    rates.clear()  # also beside a trial that diverges
    steep = "+trials={steep: {optimizer.lr: 1e30}, auto: {lora.dropout: 0.1}}"
    go(f"adds {adds} beside", *QUIET, *AUTO, "trainer.log_every_n_steps=1", steep)
    assert rates == [1e30, *RATES[: 1 if adds else 2]]


def test_without_a_training_the_offset_alone_is_saved(go):
    """The adapter is the base with a number on the logit; no image of the class was learnt."""
    folder = go("an offset", *QUIET, "lora.scale=0", "lora.offset=auto", "refit=auto")
    results = read_results(folder)
    point = results["point"]
    assert (point["scale"], results["steps"]) == (0, 0)
    assert point["offset"] == row_at(results["dial"], 0)["offset"] != 0
    assert not results["choices"]["refit"]["value"]
    assert results["test"]["repaired"] + results["test"]["broken"]
    counts = results["parameters"]
    assert (counts["lora"], counts["trainable"]) == (0, 0)
    outputs = folder.parents[1]
    assert evaluated(outputs, folder)["test"] == results["test"]
    assert evaluated(outputs, folder, "scale=auto")["point"] == point
    assert evaluated(outputs, folder, "offset=0")["test"]["broken"] == 0
    for key, tensor in adapter_of(folder).items():  # PEFT has no offset without LoRA
        if key.endswith(("lora_A.weight", "lora_B.weight")):
            assert ("linear2" in key) > tensor.any()
            assert 1 in tensor.shape
    with pytest.raises(UserError, match=r"^lora\.scale=0 lora\.offset=0: "):
        go("nothing", *QUIET, "lora.scale=0", "lora.offset=0")
    with pytest.raises(UserError, match=r"^refit=true: .*lora\.scale=0"):
        go("nothing", *QUIET, "lora.scale=0", "lora.offset=auto", "refit=true")
    assert not len(read_learnt(folder / "adapter", read_metadata(folder / "adapter")["learnt"]))


def test_a_trial_says_how_many_images_have_decided(go, monkeypatch):
    """The dial sees some of many validation images."""
    monkeypatch.setattr(dial, "MAX_IMAGES", 100)
    results = read_results(go("some", *QUIET, *TRIALS))
    assert results["validation_images"] == 500
    assert results["dial"]["images"] == results["choices"]["trial"]["images"] == 100


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
    ("typed", "names"),
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
def test_augmentations_are_composed_in_the_order_typed(typed, names):
    """One alone is itself."""
    changes = augment_of(composed("train", "stage=lora", *typed), None)
    if len(names) > 1:
        assert changes["_target_"] == "torchvision.transforms.v2.Compose"
        changes = changes["transforms"]
    else:
        changes = [changes] if changes else []
    assert [change["_target_"].rpartition(".")[2] for change in changes] == names


def test_an_augmentation_is_no_word_but_auto(tmp_path):
    """Which stands alone."""
    typed = ("augment=[auto,flip]",)
    with pytest.raises(UserError, match=r"^augment=\[auto,flip\]: expected auto alone"):
        train(composed("train", *RECIPE, *typed), Run(tmp_path, typed))
    with pytest.raises(UserError, match=r"^batches.augment=flip: expected a transform, "):
        augment_of(composed("train", "stage=lora", "batches.augment=flip"), None)


def test_refit_learns_validation_images_after_they_have_decided(go, caplog):
    """Scale and numbers of validation images are those of the training before."""
    caplog.set_level("INFO", "lora_mnist")
    before = go("alone", *QUIET)
    folder = go("refit", *QUIET, "refit=true")
    results = read_results(folder)
    assert "training 1 of 2: " in caplog.text
    assert "training 2 of 2: refit" in caplog.text
    assert results["choices"]["refit"]["value"]
    for key in ("val", "val_base", "dial"):
        assert results[key] == read_results(before)[key]
    assert changed(folder, before)
    outputs = folder.parents[1]
    assert evaluated(outputs, folder)["test"]["errors"] == results["test"]["errors"]
    auto = evaluated(outputs, folder, "scale=auto")
    assert auto["point"] == results["point"]
    assert auto["choices"]["point"]["images"] == 0  # no image has decided now
    levels = {each.levelname for each in caplog.records if "are left out" in each.getMessage()}
    assert levels == {"INFO"}


def test_refit_begins_where_its_trial_began(go, monkeypatch):
    starts, fit = [], attempt.fit

    def remembering(session, *parts):
        starts.append([p.clone() for each in lora_adapters(session.net) for p in each.parameters()])
        return fit(session, *parts)

    monkeypatch.setattr(attempt, "fit", remembering)
    go("from the start", *QUIET, "refit=true")
    trial, refit = starts
    assert all(map(torch.equal, trial, refit))


@pytest.mark.parametrize("diverges", [False, True])
def test_a_refit_that_is_behind_the_base_is_given_up(go, monkeypatch, caplog, diverges):
    """It tells itself by images that it has learnt; the trial is what is saved."""
    fit = attempt.fit

    def ruined(session, cfg, trainer, data):
        module = fit(session, cfg, trainer, data)
        if not len(data.images.val):  # the refit
            for adapter in lora_adapters(session.net):
                torch.nn.init.normal_(adapter.lora_B, std=10)
            if diverges:
                raise TrainingError("the loss is nan")
        return module

    monkeypatch.setattr(attempt, "fit", ruined)
    folder, before = go(f"ruined {diverges}", "refit=true"), go("alone", *QUIET)
    results = read_results(folder)
    assert not results["choices"]["refit"]["value"]
    assert f"refit: {'the loss is nan' if diverges else 'its score is'}" in caplog.text
    assert not changed(folder, before)
    for key in ("val", "test", "dial", "point"):
        assert results[key] == read_results(before)[key]
    learnt = []
    for each in (folder / "adapter", before / "adapter"):
        learnt.append(len(read_learnt(each, read_metadata(each)["learnt"])))
    assert learnt[0] == learnt[1]


def test_of_several_trainings_no_checkpoint_is_kept_and_curves_have_their_names(go, caplog):
    """A callback of one's own that is dropped is told."""
    own = "+callbacks.own={_target_: lightning.pytorch.callbacks.ModelCheckpoint}"
    caplog.set_level("INFO", "lora_mnist")
    options = ("refit=true", "logger=[csv,tensorboard]", "trainer.val_check_interval=4")
    folder = go("two", *options, own)
    assert "left in training 1 of 2" in caplog.text
    assert not (folder / LAST_CHECKPOINT).exists()
    assert "callbacks: no checkpoint is kept, since this repair has 2 trainings" in caplog.text
    versions = {path.parent.name for path in folder.glob("*/events.out.*")}
    assert {version.partition("training=")[2] for version in versions} == {
        *("", "lora_0.003", "refit_0.003")
    }
    curves = [read_csv(path) for path in sorted(folder.glob("csv/*/metrics.csv"))]
    assert len([curve for curve in curves if any(row.get("train/loss") for row in curve)]) == 2


def test_a_refit_on_test_images_says_what_is_still_unseen(go, caplog):
    caplog.set_level("INFO", "lora_mnist")
    folder = go("from test", *QUIET, "refit=true", "data.val_from=test", "data.val_size=100")
    assert "part of test/; only the other test images are still unseen" in caplog.text
    assert read_results(folder)["held_out"] == {"val": "test"}
    record = read_metadata(folder / "adapter")
    assert (record["data"]["val_from"], record["made"]["refit"]) == ("test", True)


def test_the_weakest_of_numbered_classes_is_the_one_that_is_learnt():
    """Its name, 10, is that of a class, and its place, 1, the name of another."""
    label = torch.tensor([0] * 9 + [1] * 9 + [2] * 9)
    before = table_of(3, label, torch.where(label == 1, 0, label))
    train = SimpleNamespace(labels=torch.tensor([0, 1, 2, 1]))
    session = SimpleNamespace(
        cfg=SimpleNamespace(target="weakest"),
        images=SimpleNamespace(train=train),
        classifier=SimpleNamespace(classes=["1", "10", "2"]),
        mistakes=None,
    )
    selection, choices = choose_target(session, before)
    assert choices["target"].value == ["10"]
    assert "nothing is known" not in choices["target"].why
    selection, choices = choose_target(session, at(before, label > 0))
    assert choices["target"].why.endswith("; without any, nothing is known of 1")
    assert (selection.targets, selection.learn_indices.tolist()) == ([1], [1, 3])


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


def test_a_class_of_few_images_is_trained_once_without_trials(go):
    choices = read_results(go("no trials", *QUIET, "trials=null", "lora.offset=auto"))["choices"]
    assert "trial" not in choices
    assert choices["point"]["why"].startswith("the highest score ")


def test_few_validation_images_of_a_class_are_told_and_none_are_refused(go, caplog):
    """The last training image is a six, the one before it a nine."""
    go("one nine", *QUIET, "data.val_size=2")
    assert "lora.scale=auto: 9 has only 1 validation image, so chance decides" in caplog.text
    assert "no validation image is of 0, 1, 2, 3, 4, 5, 7, 8: " in caplog.text
    with pytest.raises(UserError, match=r"^lora\.scale=auto: expected validation images of 9: "):
        go("no nine", *QUIET, "data.val_size=1")


def test_the_dial_stays_where_it_is_without_images_of_the_class(go):
    folder = go("alone low", *QUIET, "lora.dropout=0.05")
    results = evaluated(folder.parents[1], folder, "scale=auto", "data.val_size=1")
    assert results["point"] == read_results(folder)["point"]
    assert results["choices"]["point"]["images"] == 0
    assert "no validation images of 9" in results["choices"]["point"]["why"]


def test_a_rate_after_one_that_diverged_has_curves_of_its_own(go, monkeypatch):
    monkeypatch.setattr(trials, "RATES", (1e30, 0.003))
    options = ("logger=csv", "trainer.log_every_n_steps=1", "optimizer.lr=auto")
    folder = go("steep alone", *options, "+trainer.num_sanity_val_steps=1")
    curve = read_results(folder)["validation_errors"]
    assert all(step for step, _ in curve)  # the batch before the first step is no validation
    logged = [read_csv(path) for path in sorted(folder.glob("csv/*/metrics.csv"))]
    assert len(logged) == 2
    of_run = yaml.safe_load((folder / "csv" / "version_0" / "hparams.yaml").read_text())
    assert of_run["optimizer"]["lr"] == 0.003  # not that of the training that was given up
    errors = [int(float(row["val/errors"])) for row in logged[1] if row.get("val/errors")]
    assert errors[: len(curve)] == [each for _, each in curve]


def test_a_trial_that_diverges_loses_no_other(go, caplog):
    high = TRIALS[-1].replace("optimizer.lr: 0.01", "optimizer.lr: 1e30")
    options = (*QUIET, *AUTO, "trainer.log_every_n_steps=1")
    folder = go("one diverges", *options, high)
    choice = read_results(folder)["choices"]["trial"]
    assert choice["value"] == "low"
    assert choice["why"] == "the only one; high diverged"
    assert "high: optimizer.lr=1e+30: the loss is nan" in caplog.text
    assert not changed(folder, go("alone low", *QUIET, "lora.dropout=0.05"))
    both = high.replace("0.003", "1e30")
    with pytest.raises(TrainingError, match=r"^optimizer.lr=1e\+30: .*; optimizer.lr=1e\+30: "):
        go("all diverge", *options, both)


def test_a_training_is_compared_with_the_offset_alone_also_below_scale_0():
    rows = [{"scale": -0.5, "score": 0.9}, {"scale": 0.0, "score": 0.8}]
    made = attempt.Attempt(*[None] * 6, point=Point(-0.5), curve={"rows": rows})
    assert made.is_ahead_of_an_offset
