"""The commands of the README on real data, with few steps."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, read_results, run_process
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_mnist import MLP, load_adapter
from lora_mnist.adapter import WEIGHTS_NAME, changed_tensors

FEW = ("trainer.max_steps=20", "logger=none")


def only_run(outputs: Path, stage: str) -> Path:
    (folder,) = (outputs / stage).iterdir()
    return folder


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "seconds"}


def scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_pretrain_leaves_a_base(base_ckpt: Path) -> None:
    folder = base_ckpt.parent / "pretrain"
    results = read_results(folder)
    assert list(results) == [
        *("stage", "dataset", "seed", "digit", "steps", "parameters", "val", "test"),
        *("base_unchanged", "base_sha256", "adapter", "seconds"),
    ]
    assert results["stage"] == "pretrain"
    assert results["steps"] == 100
    assert results["parameters"]["trainable"] == 2_807_010
    assert sum(results["test"]["images_per_class"]) == 10_000
    assert sum(results["val"]["images_per_class"]) == 5_000
    assert results["test"]["accuracy"] > 0.8
    checkpoint = torch.load(base_ckpt, weights_only=True)
    net = MLP()
    net.load_state_dict({k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items()})
    assert base_ckpt.stat().st_size < 12e6


def test_lora_repairs_and_proves(base_ckpt: Path, lora_run: Path) -> None:
    results = read_results(lora_run)
    pretrained = read_results(base_ckpt.parent / "pretrain")
    assert results["test_base"] == pretrained["test"]
    assert results["base_sha256"] == pretrained["base_sha256"]
    assert results["base_unchanged"] is True
    assert results["digit"] == 9
    assert results["parameters"] == {
        "base": 2_807_010,
        "lora": 6_794,
        "trainable": 6_794,
        "increase_percent": 0.242,
    }
    assert results["test"]["errors_per_class"][9] < results["test_base"]["errors_per_class"][9]
    assert {path.name for path in lora_run.iterdir()} >= {
        *(".hydra", "train.log", "results.json", "checkpoints", "adapter"),
    }
    assert (lora_run / "checkpoints" / "last.ckpt").stat().st_size < 150_000
    adapter = lora_run / results["adapter"]
    assert (adapter / "adapter_model.safetensors").stat().st_size < 30_000


def test_tensorboard_shows_each_class(base_ckpt: Path, lora_run: Path) -> None:
    results = read_results(lora_run)
    values = scalars(lora_run)
    assert len(values["train/loss"]) == 3
    for split in ("val", "test"):
        for what in ("repaired", "broken"):
            assert values[f"{split}/{what}"] == [results[split][what]]
            assert values[f"{split}/{what}_of_class/9"] == [results[split][f"{what}_per_class"][9]]
    for split in ("val", "val_base", "test", "test_base"):
        assert values[f"{split}/accuracy"] == [pytest.approx(results[split]["accuracy"])]
        errors = [values[f"{split}/errors_of_class/{c}"] for c in range(10)]
        assert errors == [[count] for count in results[split]["errors_per_class"]]
        assert values[f"{split}/accuracy_of_class/9"] == [
            pytest.approx(1 - errors[9][0] / results[split]["images_per_class"][9])
        ]
    assert "test/accuracy_of_class/0" in scalars(base_ckpt.parent / "pretrain")


def test_eval_repeats_the_runs_numbers(
    cli: Any, base_ckpt: Path, lora_run: Path, tmp_path: Path
) -> None:
    done = cli("eval.py", f"adapter={lora_run}/adapter", f"base_ckpt={base_ckpt}")
    assert done.code == 0, done.err
    trained, evaluated = (
        read_results(lora_run),
        read_results(only_run(tmp_path / "outputs", "eval")),
    )
    for key in ("test", "test_base", "base_sha256"):
        assert evaluated[key] == trained[key]
    before, after = (trained[split]["accuracy"] for split in ("test_base", "test"))
    assert f"accuracy: {before:.4f} -> {after:.4f}" in done.out


def test_eval_stacks_adapters(cli: Any, base_ckpt: Path, lora_run: Path, tmp_path: Path) -> None:
    adapter = f"{lora_run}/adapter"
    several = f"adapter=[{adapter},{{path: {adapter}, weight: -1, name: minus}}]"
    done = cli("eval.py", several, "each=true", f"base_ckpt={base_ckpt}")
    assert done.code == 0, done.err
    results = read_results(only_run(tmp_path / "outputs", "eval"))
    trained = read_results(lora_run)
    assert results["test_base"] == trained["test_base"]
    assert results["each"]["lora"] == trained["test"]
    assert results["each"]["minus"]["errors"] != results["each"]["lora"]["errors"]
    # Together they cancel, to rounding.
    assert abs(results["test"]["errors"] - results["test_base"]["errors"]) <= 2
    assert results["adapter"] == [adapter, {"path": adapter, "weight": -1, "name": "minus"}]
    rows = {"base": results["test_base"], **results["each"], "all adapters": results["test"]}
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines()]
    for name, outcome in rows.items():
        assert [name, *map(str, outcome["errors_per_class"]), str(outcome["errors"])] in table


def test_both_stages_with_convolutions(cli: Any, tmp_path: Path) -> None:
    few = ("net=cnn", "logger=none", "data.batch_size=50")
    done = cli("train.py", "stage=pretrain", *few, "trainer.max_steps=60")
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "outputs" / "base").iterdir()] == ["mnist_cnn.ckpt"]
    adapted = ("lora.targets='conv[0-9]|linear1'", "lora.init=kaiming", "lora.rank=2")
    done = cli("train.py", "stage=lora", *few, *adapted, "trainer.max_steps=20")
    assert done.code == 0, done.err
    run = only_run(tmp_path / "outputs", "lora")
    trained = read_results(run)
    sizes = [9 + 16, 16 * 9 + 32, 32 * 49 + 10]
    assert trained["parameters"] == {
        **{"base": 20_490, "lora": 2 * sum(sizes), "trainable": 2 * sum(sizes)},
        "increase_percent": round(200 * sum(sizes) / 20_490, 3),
    }
    assert trained["base_unchanged"] is True
    assert trained["test"] != trained["test_base"]
    done = cli("eval.py", "net=cnn", f"adapter={run}/adapter")
    assert done.code == 0, done.err
    assert read_results(only_run(tmp_path / "outputs", "eval"))["test"] == trained["test"]
    done = cli("eval.py", f"adapter={run}/adapter")
    assert "mnist.ckpt: no such file" in done.err
    base = f"base_ckpt={tmp_path}/outputs/base/mnist_cnn.ckpt"
    done = cli("eval.py", f"adapter={run}/adapter", base)
    assert done.code == 2
    assert "expected a checkpoint of the configured net" in done.err


@pytest.mark.parametrize("variant", ["rslora", "kaiming", "pissa", "loraplus"])
def test_variants_train_and_load_on_the_original_base(
    cli: Any, base_ckpt: Path, tmp_path: Path, variant: str
) -> None:
    run, base = tmp_path / "run", f"base_ckpt={base_ckpt}"
    options = ("lora.rank=2", "lora.dropout=0.1", "lora.rank_pattern={linear3: 1}")
    done = cli(
        "train.py", "stage=lora", f"lora={variant}", *options, base, *FEW, f"hydra.run.dir={run}"
    )
    assert done.code == 0, done.err
    trained = read_results(run)
    assert trained["parameters"]["lora"] == 2 * (1784 + 3000) + 2010
    assert trained["base_unchanged"] is True
    assert trained["test"] != trained["test_base"]
    done = cli("eval.py", f"adapter={run}/adapter", base)
    assert done.code == 0, done.err
    evaluated = read_results(only_run(tmp_path / "outputs", "eval"))
    assert evaluated["test_base"] == trained["test_base"]
    assert evaluated["test"]["errors_per_class"] == trained["test"]["errors_per_class"]


def test_same_seed_same_numbers(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("train.py", "stage=lora", *FEW, f"base_ckpt={base_ckpt}")
    for run, extra in {"a": (), "b": (), "c": ("seed=1",)}.items():
        done = cli(*arguments, f"hydra.run.dir={tmp_path}/{run}", *extra)
        assert done.code == 0, done.err
    a, b, c = (without_times(read_results(tmp_path / run)) for run in "abc")
    assert a == b
    assert a["test"] != c["test"]
    assert a["test_base"] == c["test_base"]
    weights = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in "ab"]
    assert changed_tensors(*weights) == []


def test_notebook_experiment_gives_the_notebooks_own_weights(cli: Any, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    import notebook

    torch.manual_seed(3)
    batches, net = notebook.loader(notebook.load(train=True)), notebook.RichBoyNet()
    notebook.fit(batches, net, limit=20)
    done = cli("train.py", "stage=pretrain", "experiment=notebook", "seed=3", *FEW)
    assert done.code == 0, done.err
    ours = torch.load(tmp_path / "outputs" / "base" / "mnist.ckpt", weights_only=True)["state_dict"]
    for name, tensor in net.state_dict().items():
        assert torch.equal(ours[f"net.{name}"], tensor)


def test_notebook_experiment_composes_its_stages() -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        pretrain = compose("train", ["stage=pretrain", "experiment=notebook"])
        lora = compose("train", ["stage=lora", "experiment=notebook"])
    assert pretrain.trainer.max_epochs == 1
    assert pretrain.trainer.max_steps == -1
    assert pretrain.digit is None
    assert pretrain.data.batch_size == lora.data.batch_size == 10
    assert pretrain.data.val_size == lora.data.val_size == 0
    assert lora.lora == {
        **{"rank": 1, "alpha": 1.0, "targets": "linear[0-9]", "init": "gaussian", "init_std": 1.0},
        **{"use_rslora": False, "dropout": 0.0, "rank_pattern": None, "alpha_pattern": None},
        "lr_ratio": 1.0,
    }
    assert lora.trainer.max_steps == 100
    assert lora.digit == 9


def test_interrupted_pretraining_leaves_the_base_alone(tmp_path: Path) -> None:
    base = tmp_path / "base.ckpt"
    base.write_bytes(b"the old base")
    arguments = ["train.py", f"base_ckpt={base}", f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"training images" in line:
            break
    process.kill()
    process.wait(timeout=60)
    assert base.read_bytes() == b"the old base"
    assert not (tmp_path / "run" / "results.json").exists()


def test_resumes_from_a_checkpoint(
    cli: Any, base_ckpt: Path, lora_run: Path, tmp_path: Path
) -> None:
    checkpoint = lora_run / "checkpoints" / "last.ckpt"
    arguments = ("stage=lora", "logger=none", f"base_ckpt={base_ckpt}", f"ckpt_path={checkpoint}")
    done = cli("train.py", *arguments, "trainer.max_steps=35", f"hydra.run.dir={tmp_path}/run")
    assert done.code == 0, done.err
    assert read_results(tmp_path / "run")["steps"] == 35


@pytest.fixture
def other_base(base_ckpt: Path, tmp_path: Path) -> Path:
    """A base of the same shape, one bias moved, in ``{tmp}/other``."""
    other = torch.load(base_ckpt, weights_only=True)
    other["state_dict"]["net.linear1.bias"] += 1
    torch.save(other, tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stage=pretrain",), "expected a checkpoint of stage=pretrain, not stage=lora"),
        (("stage=lora", "lora.rank=4"), "'rank': 4"),
        (("stage=lora", "base_ckpt={tmp}/other"), ": expected base_sha256="),
        (("stage=lora", "trainer.max_steps=2"), "trainer.max_steps=2: expected more than the "),
    ],
)
@pytest.mark.usefixtures("other_base")
def test_does_not_resume_what_was_something_else(
    cli: Any,
    base_ckpt: Path,
    lora_run: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    checkpoint = lora_run / "checkpoints" / "last.ckpt"
    overrides = tuple(override.replace("{tmp}", str(tmp_path)) for override in overrides)
    done = cli("train.py", f"base_ckpt={base_ckpt}", f"ckpt_path={checkpoint}", *overrides)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=1e30", "optimizer.lr=1e+30: training diverged, linear1."),
        ("trainer.max_steps=0", "trainer.max_steps=0 trainer.max_epochs=1: expected at least one"),
        ("+trainer.limit_test_batches=0.01", "trainer: You requested to check 0.01"),
    ],
)
def test_a_pretraining_that_failed_leaves_the_base_alone(
    cli: Any, tmp_path: Path, override: str, message: str
) -> None:
    base = tmp_path / "base.ckpt"
    base.write_bytes(b"the old base")
    done = cli("train.py", "trainer.max_steps=20", "logger=none", f"base_ckpt={base}", override)
    assert done.code == 2
    assert message in done.err
    assert base.read_bytes() == b"the old base"


@pytest.mark.parametrize("base", ["null", "/", "/dev/null/base.ckpt"])
def test_a_base_that_could_not_be_written_is_refused_before_training(cli: Any, base: str) -> None:
    done = cli("train.py", f"base_ckpt={base}")
    assert done.code == 2
    assert done.err.startswith("base_ckpt=")
    assert len(done.err.splitlines()) == 1


def test_ones_own_defaults_count(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text("optimizer:\n  lr: 0.5\n")
    done = cli("train.py", "--cfg", "job", f"hydra.searchpath=[file://{tmp_path}]")
    assert done.code == 0
    assert OmegaConf.create(done.out).optimizer.lr == 0.5


@pytest.mark.parametrize("logger", ["csv", "none"])
def test_loggers(cli: Any, base_ckpt: Path, tmp_path: Path, logger: str) -> None:
    run = tmp_path / "run"
    arguments = ("stage=lora", "trainer.max_steps=10", f"base_ckpt={base_ckpt}")
    done = cli("train.py", *arguments, f"logger={logger}", f"hydra.run.dir={run}")
    assert done.code == 0, done.err
    assert (run / "csv" / "metrics.csv").exists() == (logger == "csv")
    assert not list(run.glob("events.*"))


def test_fast_dev_run_replaces_no_base(cli: Any, tmp_path: Path) -> None:
    done = cli("train.py", "+trainer.fast_dev_run=true")
    assert done.code == 0, done.err
    assert not (tmp_path / "outputs" / "base").exists()


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

BAD_INPUT = {
    "digit=10": "data.digit=10: expected null, a class from 0 to 9",
    "digit=-1": "data.digit=-1: expected",
    "digit=nine": "data.digit=nine: expected",
    "lora.rank=0": "lora.rank=0: expected an integer >= 1",
    "lora.rank=-3": "lora.rank=-3: expected an integer >= 1",
    "lora.rank=1.5": "lora.rank=1.5: expected an integer >= 1",
    "lora.init=svd": "lora.init=svd: expected one of gaussian, kaiming, pissa",
    "lora.dropout=1": "lora.dropout=1: expected a number from 0 to below 1",
    "lora.use_rslora=2": "lora.use_rslora=2: expected true or false",
    "lora.rank_pattern={conv: 2}": "lora.rank_pattern={conv: 2}: expected a layer of: linear1, ",
    "lora.lr_ratio=0": "lora.lr_ratio=0: expected a finite number > 0",
    "lora.alpha=nan": "lora.alpha=nan: expected a finite number > 0",
    "lora.targets=conv": "lora.targets=conv: expected to match a linear or conv2d layer, of: ",
    "data.replay=-1": "data.replay=-1: expected an integer >= 0",
    "data.replay=60000": "data.replay=60000: expected at most the 49534 training images of other",
    "data.hardness=1": "data.hardness=1: expected a number from 0 to below 1",
    "loss.target_weight=2": "loss.target_weight=2: expected a finite number from 0 to 1",
    "loss.fit=l1": "loss.fit=l1: expected one of cross_entropy, hinge",
    "data.batch_size=0": "data.batch_size=0: expected an integer >= 1",
    "data.val_size=60000": "data.val_size=60000: expected less than 60000",
    "data.data_dir=/dev/null": "data.data_dir=/dev/null: expected a readable folder",
    "data.data_dir={tmp}/none": "files missing, and no download possible",
    "+trainer.limit_test_batches=0": "trainer.limit_test_batches=0: expected > 0",
    "+trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0: expected >= 1",
    "+trainer.precision=bf16-true": "trainer.precision=bf16-true: expected 32-true or a mixed",
    "trainer.devices=0": "trainer.devices=0: ",
    "trainer.max_steps=-7": "trainer.max_steps=-7: ",
    "trainer=gpu": "trainer.accelerator=gpu: not on this machine; expected one of auto, cpu",
    "+optimizer.nope=1": "optimizer: Adam.__init__() got an unexpected keyword argument 'nope'",
    "optimizer._target_=torch.optim.Adamm": "optimizer: Error loading 'torch.optim.Adamm'",
    "+lora.bias=all": "lora: add_lora() got an unexpected keyword argument 'bias'",
    "lora.rank_pattern=4": "lora.rank_pattern=4: expected a mapping from layers to values, or null",
    "loss=distill": "loss.distill=1.0: expected data.replay > 0, or loss.distill_on=target",
    "data.mean=abc": "data.mean=abc: expected a number",
    "data.seed=abc": "data.seed=abc: expected an integer >= 0",
    "optimizer.lr=-1": "optimizer: Invalid learning rate: -1",
    "seed=-1": "seed=-1: expected an integer from 0 to 4294967295",
    "ckpt_path={tmp}/none": "ckpt_path={tmp}/none: expected a checkpoint of stage=lora",
    "base_ckpt={tmp}/none": "python train.py stage=pretrain net=mlp data=mnist",
    "base_ckpt={tmp}/empty": "base_ckpt={tmp}/empty: expected a checkpoint of stage=pretrain",
    "base_ckpt={tmp}/truncated": "base_ckpt={tmp}/truncated: expected a checkpoint",
    "base_ckpt={tmp}/foreign": "base_ckpt={tmp}/foreign: expected a checkpoint",
    "net.hidden_sizes=[30]": "expected a checkpoint of the configured net",
}


@pytest.mark.parametrize(
    "override",
    [
        pytest.param(override, marks=NO_GPU if override == "trainer=gpu" else ())
        for override in BAD_INPUT
    ],
)
def test_bad_input(cli: Any, base_ckpt: Path, tmp_path: Path, override: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "truncated").write_bytes(base_ckpt.read_bytes()[:100_000])
    torch.save({"weight": torch.ones(3)}, tmp_path / "foreign")
    run = tmp_path / "run"
    bad = override.replace("{tmp}", str(tmp_path))
    base = () if bad.startswith("base_ckpt") else (f"base_ckpt={base_ckpt}",)
    done = cli("train.py", "stage=lora", *base, bad, f"hydra.run.dir={run}")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert BAD_INPUT[override].replace("{tmp}", str(tmp_path)) in done.err
    assert done.out == ""
    assert {path.name for path in run.iterdir()} == {".hydra", "train.log"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "adapter=null: expected the folder of an adapter"),
        (("adapter={tmp}/none",), "adapter={tmp}/none: expected a readable adapter_config.json"),
        (("adapter=3",), "adapter=3: expected a folder, or a mapping of path, weight and name"),
        (("adapter=[{weight: 1}]",), "adapter={'weight': 1}: expected a folder, or a mapping of"),
        (("adapter={path: x, scale: 1}",), "'scale': 1}: expected a folder, or a mapping of path"),
        (("adapter={path: {run}/adapter, weight: x}",), "/adapter: weight=x: expected a finite"),
        (("adapter=[{run}/adapter,{run}/adapter]",), "name=lora: expected another name than lora"),
        (
            ("adapter={run}/adapter", "base_ckpt={tmp}/other"),
            "expected the same base, or allow_oth",
        ),
    ],
)
@pytest.mark.usefixtures("other_base")
def test_bad_input_to_eval(
    cli: Any,
    base_ckpt: Path,
    lora_run: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    names = {"{tmp}": str(tmp_path), "{run}": str(lora_run)}
    for name, path in names.items():
        overrides = tuple(override.replace(name, path) for override in overrides)
    done = cli("eval.py", f"base_ckpt={base_ckpt}", *overrides)
    assert done.code == 2
    assert message.replace("{tmp}", str(tmp_path)) in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage=nope", "Available options in 'stage'"),
        ("data=nope", "Available options in 'data'"),
        ("nope=1", "Key 'nope' is not in struct"),
        ("lora.nope=1", "Key 'nope' is not in struct"),
    ],
)
def test_hydras_own_refusals_stay(cli: Any, override: str, message: str) -> None:
    stage = () if override.startswith("stage") else ("stage=lora",)
    done = cli("train.py", *stage, override)
    assert done.code == 1
    assert message in done.err


def test_a_run_folder_is_never_shared(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("stage=lora", *FEW, f"base_ckpt={base_ckpt}", f"hydra.run.dir={tmp_path}/run")
    assert cli("train.py", *arguments).code == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    done = cli("train.py", *arguments, "seed=1")
    assert done.code == 2
    assert f"hydra.run.dir={tmp_path}/run: holds another run" in done.err
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_an_output_folder_that_cannot_be_made(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()
    for flags in ((), ("-m", "seed=0,1")):
        done = cli("train.py", *flags)
        assert done.code == 2
        assert "cannot be written" in done.err
        assert len(done.err.splitlines()) == 1


def test_full_error_brings_the_traceback(base_ckpt: Path, tmp_path: Path) -> None:
    arguments = ("train.py", "digit=10", f"hydra.run.dir={tmp_path}/run")
    done = run_process(*arguments, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_and_config_need_no_torch() -> None:
    for flags in (["--help"], ["--cfg", "job", "--resolve"], ["stage=lora", "--cfg", "job"]):
        done = run_process("-X", "importtime", "train.py", *flags)
        assert done.returncode == 0, done.stderr
        assert "torch" not in done.stderr
        assert "stage" in done.stdout


def test_another_dataset_by_name(cli: Any, tmp_path: Path) -> None:
    """The relatives of MNIST are files of the same form in a folder of their own name."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in (ROOT / "data" / "MNIST" / "raw").glob("*-ubyte"):
        shutil.copy(archive, raw)
    done = cli("train.py", "data=fashion_mnist", f"data.data_dir={tmp_path}/data", *FEW)
    assert done.code == 0, done.err
    assert "Ankle boot" in done.out
    assert (tmp_path / "outputs" / "base" / "fashion_mnist.ckpt").exists()


def test_the_adapter_loads_on_a_fresh_net(base_ckpt: Path, lora_run: Path) -> None:
    state = torch.load(base_ckpt, weights_only=True)["state_dict"]
    net = MLP()
    net.load_state_dict({k.removeprefix("net."): v for k, v in state.items()})
    load_adapter(net, lora_run / "adapter")


@pytest.mark.parametrize("experiment", ["repair", "repair_private"])
def test_recipes(cli: Any, base_ckpt: Path, tmp_path: Path, experiment: str) -> None:
    run = tmp_path / "run"
    arguments = (f"experiment={experiment}", *FEW, f"base_ckpt={base_ckpt}", f"hydra.run.dir={run}")
    done = cli("train.py", "stage=lora", *arguments)
    assert done.code == 0, done.err
    results = read_results(run)
    assert results["test"]["repaired_per_class"][9] > 0
    repaired, broken = (results["test"][what] for what in ("repaired", "broken"))
    assert f"repaired: {repaired}, broken: {broken}" in done.out
    assert results["test"]["errors"] - results["test_base"]["errors"] == broken - repaired


def test_hardness_changes_what_is_drawn(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    same = ("stage=lora", "data.replay=9", *FEW, f"base_ckpt={base_ckpt}")
    sweep = ("data.hardness=0.5,0.8", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep")
    assert cli("train.py", "-m", *same, *sweep).code == 0
    assert cli("train.py", *same, "data.hardness=0.8", f"hydra.run.dir={tmp_path}/one").code == 0
    one = load_file(tmp_path / "one" / "adapter" / WEIGHTS_NAME)
    swept = {
        folder.name.split("-")[0]: load_file(folder / "adapter" / WEIGHTS_NAME)
        for folder in tmp_path.glob("sweep/data.hardness=*")
    }
    equal = [name for name, adapter in swept.items() if not changed_tensors(one, adapter)]
    assert len(swept) == 4
    assert equal == ["data.hardness=0.8,seed=0"]


def test_weakest_class(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("stage=lora", "digit=weakest", *FEW, f"base_ckpt={base_ckpt}")
    done = cli("train.py", *arguments, "loss=distill", "data.replay=9", f"hydra.run.dir={run}")
    assert done.code == 0, done.err
    results = read_results(run)
    errors = results["val_base"]["errors_per_class"]
    assert results["digit"] == errors.index(max(errors))
    assert f"{max(errors)} of the base's {sum(errors)} errors" in done.err
    same = ("stage=lora", f"digit={results['digit']}", *FEW, f"base_ckpt={base_ckpt}")
    done = cli("train.py", *same, "loss=distill", "data.replay=9", f"hydra.run.dir={tmp_path}/same")
    adapters = [load_file(tmp_path / r / "adapter" / WEIGHTS_NAME) for r in ("run", "same")]
    assert not changed_tensors(*adapters)
    assert results["test"]["errors_per_class"] != results["test_base"]["errors_per_class"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stage=pretrain", "digit=weakest"), "digit=weakest: expected stage=lora"),
        (("stage=pretrain", "loss=distill"), "loss.distill=1.0: expected 0, since stage=pretrain"),
        (("stage=pretrain", "data.hardness=0.5"), "data.hardness=0.5: expected 0, since stage="),
        (("stage=pretrain", "net.num_classes=5"), "net.num_classes=5: expected the 10 of MNIST"),
        (("stage=lora", "digit=weakest", "data.val_size=0"), "expected data.val_size > 0"),
        (("stage=pretrain", "scheduler=cosine"), "trainer.max_steps=-1: expected the number of"),
        (("stage=finetune", "trainable=conv.*"), "trainable=conv.*: expected to match a parameter"),
    ],
)
def test_bad_input_to_a_repair(
    cli: Any, base_ckpt: Path, overrides: tuple[str, ...], message: str
) -> None:
    done = cli("train.py", *overrides, f"base_ckpt={base_ckpt}")
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_finetune_trains_the_chosen_parameters(cli: Any, base_ckpt: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("stage=finetune", "trainable=linear3.*", *FEW, f"base_ckpt={base_ckpt}")
    done = cli("train.py", *arguments, "~callbacks.progress_bar", f"hydra.run.dir={run}")
    assert done.code == 0, done.err
    results = read_results(run)
    assert results["parameters"]["trainable"] == 20_010
    assert results["base_unchanged"] is False
    before = torch.load(base_ckpt, weights_only=True)["state_dict"]
    after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert changed_tensors(before, after) == ["net.linear3.bias", "net.linear3.weight"]
    pretrained = read_results(base_ckpt.parent / "pretrain")
    assert results["test_base"] == pretrained["test"]
    assert results["base_sha256"] == pretrained["base_sha256"]
