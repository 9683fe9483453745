"""One rule for every mistake, whatever the command: it is one line, and the exit code is 2.

The line names the key and the value that cannot be used; no file is left of what could not be done.
"""

import pytest
from composed import FEW, SMALL, composed, logged, small_base
from PIL import Image

from lora_mnist.cli.explain import explain
from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.export import export
from lora_mnist.commands.predict import predict
from lora_mnist.commands.train import train
from lora_mnist.config.run import Run

TRAIN = ("trainer.max_steps=3", "logger=none", "trainer=cpu")
LORA = ("stage=lora", "target=9", *TRAIN)
PRETRAIN = ("stage=pretrain", *TRAIN)

#: The last argument is wrong; the line begins with it, or with what stands behind the arrow.
MISTAKES = {
    "train": [
        (*PRETRAIN, "seed=-1"),
        (*PRETRAIN, "digit=weakest -> target="),
        (*PRETRAIN, "base_ckpt={tmp}/text.txt"),
        (*PRETRAIN, "scheduler=linear", "trainer.max_steps=-1"),
        (*LORA, "callbacks=best -> callbacks: "),
        (*PRETRAIN, "data.val_size=99999999"),
        (*PRETRAIN, "net.in_features=700 -> net: images of shape "),
        (*PRETRAIN, "data.val_size=1", "trainer.devices=2"),
        (*PRETRAIN, "+trainer.nope=1 -> trainer: "),
        (*PRETRAIN, "optimizer.lr=auto"),
        (*PRETRAIN, "+optimizer.betas=5 -> optimizer: "),
        (*LORA, "trainer.accumulate_grad_batches=0"),
        (*LORA, "trainer.check_val_every_n_epoch=0"),
        (*LORA, "trainer.log_every_n_steps=[1,2]"),
        (*LORA, "trainer.val_check_interval=0"),
        (*LORA, "trainer.max_steps=null"),
        (*LORA, "trainer.max_steps=-1"),
        (*LORA, "trainer.max_steps=-1", "trainer.max_epochs=null -> trainer.max_steps="),
        (*LORA, "trainer.max_steps='-1'"),  # a text
        (*LORA, "+trainer.limit_val_batches=1.5 -> trainer.limit_val_batches=1.5: "),
        (*LORA, "trainer.max_steps=0"),  # a training has a step
        (*PRETRAIN, "trainer.max_epochs=0"),
        (*LORA, "batches.seed=true"),
        (*LORA, "lora.alpha=true"),
        (*LORA, "lora.init_std=-1"),
        (*LORA, "lora.init_std=0"),  # nothing is learned from A = B = 0
        (*LORA, "batches.replay=10", "target=[]"),
        (*PRETRAIN, "target=[]"),
        ("experiment=repair", *TRAIN, "digit=[] -> target=[]"),
        (*LORA, "target={9: 1}"),
        (*PRETRAIN, "net._target_=my_nest.Net -> net._target_=my_nest.Net: ModuleNotFoundError: "),
        (*LORA, "lora.use_rslora=maybe"),
        (*LORA, "lora.target_modules=5"),
        (*LORA, "+batches.repaly=3 -> batches.repaly: "),
        (*LORA, "+data.mean=0.1 -> data.mean=0.1"),
        (*LORA, "target=1.10 -> target=1.1"),
        (
            *(*LORA, "lora=pissa"),
            "optimizer._target_=torch.optim.AdamW -> optimizer.weight_decay=",
        ),
        (*LORA, "net.hidden_sizes=[15] -> base_ckpt="),
        (*LORA, "net=custom -> net._target_: "),
        (*LORA, "net={_target_: 3} -> net._target_=3: "),
        (*LORA, "ckpt_path=true"),
        (*LORA, "ckpt_path={tmp}/none -> ckpt_path={tmp}/none: no such file; expected "),
        (*PRETRAIN, "digit=9", "batches.replay=99999999"),
        (*LORA, "mistakes={tmp}", "target=3"),
        ("experiment=repair", *TRAIN, "mistakes={tmp}", "mistakes_test=20%"),
        ("experiment=repair", *TRAIN, "mistakes={tmp}", "lora.offset=0.5"),
        (*LORA, "refit=1"),
        (*LORA, "paths.bases=true"),
        (*LORA, "lora.scale='a number > 0' -> lora.scale=a number > 0: expected"),
        (*LORA, "trainer.max_epochs=nan"),
        (*LORA, "trainer.accelerator=mps"),
        (*LORA, "trainer=gpu -> trainer.accelerator=gpu: "),
        (*LORA, "+loss.nope=1 -> loss: "),
        (*LORA, "batches.replay=9", "loss.target_weight=2"),
        (*LORA, "+trainer.limit_val_batches=0", "lora.scale=auto"),
        ("experiment=repair", *TRAIN, "data.val_size=0 -> target=weakest, lora.scale=auto, "),
    ],
    "eval": [
        ("adapter={tmp}/none",),
        ("data=folder", "base_ckpt={tmp}/outputs/base/mnist.ckpt", "data.data_dir={tmp}/none"),
        (*("data=folder", "net=custom", "net._target_=a.B"), "data.data_dir={tmp}/none"),
        (
            *("data=folder", "base_ckpt={tmp}/outputs/base/mnist.ckpt"),
            "+data.data_dirr=. -> data: ",
        ),
        ("scale=0.5",),
        ("scale=auto",),
        ("prepare.mean=[0.1,0.2,0.3]",),
        ("prepare.image_size=64 -> prepare.image_size=",),
    ],
    "predict": [
        ("images={tmp}/none*.png",),
        ("images=null -> images: missing; expected ",),
        ("images={tmp}", "data.eval_batch_size=0"),
        ("images={tmp}", "accelerator=tpu"),
        ("images={tmp}", "accelerator=mps"),
        ("images={tmp}/digit.png", "out={tmp}/text.txt/a.csv"),
        ("images={tmp}/digit.png", f"out={{tmp}}/{'a' * 300}.csv"),
        ("images={tmp}/digit.png", "out={tmp}/text.txt"),
    ],
    "export": [("out={tmp}/outputs/base/mnist.ckpt",), ("out={tmp}/text.txt/a.safetensors",)],
}
CASES = [(entry, *arguments) for entry, lists in MISTAKES.items() for arguments in lists]
COMMANDS = {"train": train, "eval": evaluate, "predict": predict, "export": export}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_command_answers_a_mistake_in_one_line(tmp_path, capfd, case):
    entry, *arguments = [text.replace("{tmp}", str(tmp_path)) for text in case]
    (tmp_path / "text.txt").write_text("no weights")
    Image.new("L", (28, 28)).save(tmp_path / "digit.png")
    small_base(tmp_path / "outputs")
    arguments = [SMALL[0], *(FEW if entry == "train" else ()), *arguments]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    wrong, _, start = arguments[-1].partition(" -> ")
    with logged("lora_mnist") as log, pytest.raises(Exception) as caught:  # noqa: PT011
        cfg = composed(entry, f"paths.outputs={tmp_path}/outputs", *arguments[:-1], wrong)
        COMMANDS[entry](cfg, Run(tmp_path / "run"))
    line = explain(caught.value)
    said = [line for line in log.getvalue().splitlines() if "MNIST's" not in line]
    said = [line for line in said if not line.startswith("loading ")]
    assert (said, *capfd.readouterr()) == ([], "", "")
    assert line is not None
    assert "\n" not in line
    assert line.startswith(start or wrong.lstrip("+")), line
    left = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert left == before
