import pytest
from composed import FEW, QUICK, SMALL, composed, load_adapter_tensors, run, small_base
from helpers.commands import list_files, only_run, read_results

from lora_mnist.classifier.base import read_base_sha256
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run
from lora_mnist.lora.adapter import read_metadata

NINES = ("stage=lora", "digit=9")


def test_an_adapter_is_written_before_the_copy_of_its_base(tmp_path):
    """Which is much larger: here there is no place for it, as on a full disk."""
    base, bases = small_base(tmp_path), tmp_path / "bases"
    bases.touch()
    options = ("stage=lora", "target=9", f"base_ckpt={base}", f"paths.bases={bases}")
    with pytest.raises(FileExistsError, match="bases"):
        run(tmp_path / "outputs", *options)
    folder = only_run(tmp_path / "outputs", "lora")
    assert load_adapter_tensors(folder)
    assert read_results(folder)["adapter"] == "adapter"
    assert (folder / "predictions.csv").is_file()


def test_a_new_base_is_there_whatever_fails_after_it(tmp_path, monkeypatch):
    """As a tracking server that is gone; the current one stays."""
    current = small_base(tmp_path)
    before = current.read_bytes()

    def fails(*_):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr("lora_mnist.commands.train.finish", fails)
    with pytest.raises(ConnectionError):
        run(tmp_path, "stage=pretrain", "batches.batch_size=100", "trainer.max_steps=30")
    assert list(current.parent.glob("mnist-*.ckpt"))
    assert current.read_bytes() == before


def test_a_job_of_a_sweep_replaces_no_base_but_one_that_is_named(outputs, tmp_path):
    before, mine = list_files(outputs / "base"), tmp_path / "mine.ckpt"
    cfg = composed("train", "stage=pretrain", "seed=5", *QUICK, f"paths.outputs={outputs}")
    results = train(cfg, Run(tmp_path / "1", is_sweep=True))
    sha256, weights = results["base_sha256"], tmp_path / "1" / results["weights"]
    assert weights.resolve() == (outputs / "base" / f"mnist-{sha256[:12]}.ckpt").resolve()
    cfg.base_ckpt = str(mine)
    named = Run(tmp_path / "2", (f"base_ckpt={mine}",), is_sweep=True)
    train(cfg, named)
    cfg.base_ckpt = str(outputs / "base" / "notebook.ckpt")  # as an experiment names it
    by_experiment = Run(tmp_path / "3", ("experiment=notebook",), is_sweep=True)
    train(cfg, by_experiment)
    after = list_files(outputs / "base")
    assert after.pop(outputs / "base" / f"mnist-{sha256[:12]}.ckpt")
    assert read_base_sha256(mine) == sha256
    assert after == before


def test_a_record_says_what_changes_numbers_and_not_where_they_lie(outputs, tmp_path):
    """Trainings alike leave files alike: an adapter that is given away names no folder."""
    numbers = ("trainer.max_steps=2", "~callbacks.checkpoint")
    left = []
    for name in ("one", "two"):
        places = (f"paths.run={tmp_path}/{name}", f"run_name={name}", "figures=false")
        command_line = (*places, f"hydra.run.dir={name}", "logger=none", *numbers)
        cfg = composed("train", *NINES, *QUICK, f"paths.outputs={outputs}", numbers[0])
        from_hydra = Run(tmp_path / name, command_line)
        train(cfg, from_hydra)
        left.append([path.read_bytes() for path in sorted((tmp_path / name).glob("adapter/*"))])
        assert read_metadata(tmp_path / name / "adapter")["made"]["overrides"] == [numbers[0]]
    assert left[0] == left[1]


def test_a_trial_leaves_nothing_that_other_commands_take(outputs):
    """Nor does one batch have to be right about more than one class."""
    before = list_files(outputs / "base")
    options = ("digit=9", "+trainer.fast_dev_run=true", "optimizer.lr=1e3")
    for stage in ("lora", "pretrain"):
        results = run(outputs, f"stage={stage}", *options)
        assert (results["steps"], results["adapter"]) == (1, None)
    train_digests = ("+trainer.fast_dev_run=true", "optimizer.lr=0.01", "batches.batch_size=500")
    run(outputs, "stage=pretrain", *train_digests)
    assert not list(outputs.rglob("adapter"))
    assert list_files(outputs / "base") == before


def test_a_debug_run_leaves_no_adapter_and_no_copy_of_its_base(outputs, tmp_path):
    mine = (f"base_ckpt={outputs}/base/mnist.ckpt", f"paths.outputs={tmp_path}/mine")
    options = (*SMALL, *FEW, "debug=overfit", "trainer.max_steps=3")
    results = train(composed("train", *NINES, *options, *mine))
    assert (results["steps"], results["adapter"]) == (3, None)
    assert not [*tmp_path.glob("mine/**/adapter"), *tmp_path.glob("mine/base/*")]
