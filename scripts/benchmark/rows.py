"""The rows of the benchmark's table: who takes turns at which work, and what ours must reach."""

import source_notebook
import torch
from contestants import (
    dense_net,
    fit_net,
    fit_notebook,
    fit_on,
    fit_ours,
    lora_net,
    peft_net,
    test_bare,
    test_notebook,
    test_ours,
)
from processes import Contestant, Side, peak_memory, run_process
from row import Row

from lora_mnist import MLP
from lora_mnist.project import PROJECT

BENCHMARK = str(PROJECT / "scripts" / "benchmark")
NOTEBOOK = "scripts/benchmark/source_notebook.py"
#: Flags of train.py that should answer at once, with what a shell sets when it asks.
AT_ONCE: dict[str, dict[str, str]] = {
    "--help": {},
    "--cfg job": {},
    "-sc query=bash": {"COMP_LINE": "python train.py stage=", "COMP_POINT": "22"},
}


def training_rows(sides: dict[str, Side], quick: bool) -> list[Row]:
    """Steps of training."""
    steps = 120 if quick else 400
    rows = [
        Row(
            "pretrain, Trainer",
            "steps/s",
            {
                "notebook": sides["notebook"](fit_notebook, steps // 3, None),
                "floor": sides["floor"](fit_net, MLP, steps),
                "ours": sides["ours"](fit_ours, steps, "stage=pretrain"),
            },
            {"notebook": 2, "floor": 0.8},
            warm_up=True,
        ),
        Row(
            "LoRA rank 1, Trainer",
            "steps/s",
            {
                "notebook": sides["notebook"](fit_notebook, steps // 4, source_notebook.DIGIT),
                "ours": sides["ours"](fit_ours, steps, "stage=lora"),
            },
            {"notebook": 6},
            warm_up=True,
        ),
    ]
    for batch_size, least in ((10, 1.5), (100, 1.35)):
        count = steps // 3  # about as many as a repair has: packing counts as it does there
        contestants = {
            "PEFT": sides["PEFT"](fit_net, peft_net, count, batch_size),
            "ours": sides["ours"](fit_net, lora_net, count, batch_size),
        }
        name = f"LoRA rank 1, bare loop, batches of {batch_size}"
        rows.append(Row(name, "steps/s", contestants, {"PEFT": least}, warm_up=True))
    return rows


def test_rows(sides: dict[str, Side], quick: bool) -> list[Row]:
    """The test set, from raw images to the errors of each class."""
    images = 500 if quick else 2000  # the notebook goes row by row, and at an even pace
    return [
        Row(
            "test, adapted network",
            "images/s",
            {
                "notebook": sides["notebook"](test_notebook, dense_net, images),
                "PEFT": sides["PEFT"](test_bare, peft_net, 1000),
                "ours": sides["ours"](test_ours, True),
            },
            {"notebook": 20, "PEFT": 1.25},
            warm_up=True,
        ),
        Row(
            "test, base",
            "images/s",
            {
                "notebook": sides["notebook"](test_notebook, source_notebook.RichBoyNet, images),
                "ours": sides["ours"](test_ours, False),
            },
            {"notebook": 3},
            warm_up=True,
        ),
    ]


def gpu_rows(sides: dict[str, Side], quick: bool) -> list[Row]:
    """Training and test on a GPU, beside the same on the CPU, PEFT and a compiled network."""
    steps = 120 if quick else 400
    on_gpu = "trainer=gpu"
    rows = [
        Row(
            f"{stage}, Trainer, GPU",
            "steps/s",
            {
                "CPU": sides["CPU"](fit_ours, steps, f"stage={stage}", "trainer=cpu"),
                "ours": sides["ours"](fit_ours, steps, f"stage={stage}", on_gpu),
            },
            {"CPU": 1},
            warm_up=True,
        )
        for stage in ("pretrain", "lora")
    ]
    for batch_size in (10, 100):
        contestants = {
            "PEFT": sides["PEFT"](fit_on, "cuda", peft_net, steps, batch_size),
            "compiled": sides["compiled"](fit_on, "cuda", lora_net, steps, batch_size, True),
            "ours": sides["ours"](fit_on, "cuda", lora_net, steps, batch_size),
        }
        name = f"LoRA rank 1, bare loop, batches of {batch_size}, GPU"
        rows.append(Row(name, "steps/s", contestants, {"PEFT": 1, "compiled": 1}, warm_up=True))
    contestants = {
        "CPU": sides["CPU"](test_ours, True, "trainer=cpu"),
        "ours": sides["ours"](test_ours, True, on_gpu),
    }
    rows.append(
        Row("test, adapted network, GPU", "images/s", contestants, {"CPU": 1}, warm_up=True)
    )
    return rows


def command_rows(folder: str, python: str) -> list[Row]:
    """Whole commands, process start to exit, on bases that each side pretrained itself."""
    theirs, ours = f"{folder}/notebook.pt", f"{folder}/base.ckpt"
    torch.save(source_notebook.RichBoyNet().state_dict(), theirs)
    settings = [f"base_ckpt={ours}", f"paths.outputs={folder}/outputs"]

    def run(*command: str, **environment: str) -> float:
        return run_process(python, *command, **environment)[0]

    run("train.py", "stage=pretrain", "trainer.max_steps=100", *settings)
    lora = ["train.py", "stage=lora", "digit=9", "trainer.max_steps=100", *settings]
    imports = "import hydra, lightning.pytorch, torchvision, torch.utils.tensorboard, safetensors"
    script = f"import runpy, sys; sys.argv = {lora!r}; runpy.run_path('train.py', None, '__main__')"
    first_step = "+callbacks.stop._target_=first_step.ExitAtFirstStep"

    def further_job() -> float:
        few, many = (run(*lora, f"lora.rank={r}", "-m") for r in ("1,2", "1,2,3,4,5,6"))
        return (many - few) / 4

    def at_once(flags: str) -> Contestant:
        return lambda: run("train.py", *flags.split(), **AT_ONCE[flags])

    rows = [
        Row(
            "command stage=lora, 100 steps",
            "s",
            {"notebook": lambda: run(NOTEBOOK, "lora", theirs), "ours": lambda: run(*lora)},
            {"notebook": 3},
            less_is_better=True,
        ),
        Row(
            "a command's start, to the first step",
            "s",
            {
                "import torch, lightning": lambda: run("-c", "import torch, lightning.pytorch"),
                "ours": lambda: run(*lora, first_step, PYTHONPATH=BENCHMARK),
            },
            {"import torch, lightning": 1 / 1.3},
            less_is_better=True,
        ),
        Row(
            "a further job of a sweep",
            "s",
            {"ours": further_job},
            at_most=1,
            less_is_better=True,
        ),
        Row(
            "peak memory, stage=lora",
            "MB beyond the imports",
            {"ours": lambda: peak_memory(python, script) - peak_memory(python, imports)},
            at_most=250,
            less_is_better=True,
        ),
    ]
    for flags in AT_ONCE:
        contestants = {
            "import hydra": lambda: run("-c", "import hydra"),
            "ours": at_once(flags),
        }
        name = f"start-up, train.py {flags}"
        rows.append(Row(name, "s", contestants, {"import hydra": 1 / 3}, less_is_better=True))
    return rows
