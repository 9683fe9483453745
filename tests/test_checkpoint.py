import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composed import SMALL, composed, few_images, small_base
from helpers.crash import CRASH, Crashed
from torch import Tensor, nn

from lora_mnist import checkpoint
from lora_mnist.disk.checkpoint import (
    AtomicCheckpointIO,
    Checkpoints,
    _random_states,
    _require_own_sizes,
    _set_random_states,
    read_checkpoint,
)
from lora_mnist.train import train
from lora_mnist.weights_file import limits

COMPLETE: dict[str, Any] = {
    **{"state_dict": {"a": torch.arange(1000.0)}, "optimizer_states": [], "lr_schedulers": []},
    **{"loops": {}, "global_step": 7, "going_on": {"epoch": 0, "place": (0, 0, 7, 7)}},
}
MOST = limits(COMPLETE["state_dict"])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(COMPLETE, path)
    found = read_checkpoint(path, MOST)
    assert torch.equal(found.pop("state_dict")["a"], torch.arange(1000.0))
    assert found == {key: value for key, value in COMPLETE.items() if key != "state_dict"}
    assert list(path.parent.iterdir()) == [path]


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / "one.ckpt", tmp_path / "other.ckpt"]
    for path in paths:
        AtomicCheckpointIO().save_checkpoint(COMPLETE, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_write_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(COMPLETE, path)

    def half(self: Path, content: Any) -> None:
        with self.open("wb") as file:
            file.write(bytes(content)[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left on device: .*last.ckpt"):
        AtomicCheckpointIO().save_checkpoint({**COMPLETE, "global_step": 8}, path)
    assert read_checkpoint(path, MOST)["global_step"] == 7
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_torn_one_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(COMPLETE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{path}: no checkpoint, or damaged"):
        read_checkpoint(path, MOST)


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    """torch.load would read on."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(COMPLETE, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor(700.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["global_step"] == 7
    with pytest.raises(ValueError, match="no checkpoint, or damaged"):
        read_checkpoint(path, MOST)


@pytest.mark.parametrize(
    "content",
    [
        *([1], {"state_dict": {}}, {**COMPLETE, "net": nn.Linear(1, 1)}),
        *({**COMPLETE, "global_step": step} for step in ("7", -7, 7.5, None)),
        *({**COMPLETE, "going_on": going_on} for going_on in ([], {}, {"epoch": 0, "place": [-1]})),
        {**COMPLETE, "more": [torch.zeros(1).expand(10**6, 10**6)]},
    ],
)
def test_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "some.ckpt")
    with pytest.raises(ValueError, match="no checkpoint, or damaged"):
        read_checkpoint(tmp_path / "some.ckpt", MOST)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.ckpt", MOST)


@pytest.mark.parametrize("position", [625, 10**9, -1])
def test_numpys_generator_is_not_sent_behind_its_memory(position: int) -> None:
    states = _random_states(torch.device("cpu"))
    kind, keys, _, *rest = states["numpy"]
    states["numpy"] = (kind, torch.cat([keys, keys]), position, *rest)
    with pytest.raises(ValueError, match=f"numpy's generator at {position} of 624 numbers"):
        _set_random_states(states, torch.device("cpu"))


@pytest.mark.parametrize(
    "tensor", [torch.ones(3), torch.ones(1).expand(2, 3), torch.ones(3, 2).t(), torch.ones(0)]
)
def test_what_an_optimizer_keeps_has_the_size_of_its_parameter(tensor: Tensor) -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    adam = torch.optim.Adam([weight])
    weight.grad = torch.ones(2, 3)
    adam.step()
    _require_own_sizes(adam)
    adam.state[weight]["exp_avg"] = tensor
    with pytest.raises(ValueError, match="the optimizer's exp_avg has another size"):
        _require_own_sizes(adam)


def test_an_optimizer_that_sums_rows_and_columns_keeps_other_sizes() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    factored = torch.optim.Adafactor([weight])
    weight.grad = torch.ones(2, 3)
    factored.step()
    assert any(value.shape not in ((), (2, 3)) for value in factored.state[weight].values())
    _require_own_sizes(factored)


def drawn() -> list[float]:
    numbers = [random.random(), np.random.rand(), torch.rand(()).item(), torch.randn(()).item()]
    return [float(number) for number in numbers]


def test_every_generator_is_restored(tmp_path: Path) -> None:
    drawn()
    torch.save(_random_states(torch.device("cpu")), tmp_path / "states")
    first = drawn()
    assert drawn() != first
    states = torch.load(tmp_path / "states", weights_only=True)
    _set_random_states(states, torch.device("cpu"))
    assert drawn() == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_seconds": 0}, "every_seconds=0: expected a number > 0, or null"),
        ({"every_seconds": float("nan")}, "every_seconds=nan: expected"),
        ({"every_seconds": "1"}, "every_seconds=1: expected"),
        ({"every_steps": 0}, "every_steps=0: expected an integer >= 1, or null"),
        ({"every_steps": True}, "every_steps=True: expected"),
    ],
)
def test_refuses(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoints(str(tmp_path), **settings)


class Clock:
    """A clock that goes on by a second a step, and by ``cost`` while a checkpoint is written."""

    def __init__(self, callback: Checkpoints, cost: float) -> None:
        self.now, self.saved, self.cost = 0.0, list[int](), cost
        self.callback = callback
        self.monotonic = lambda: self.now
        self.strategy = SimpleNamespace(save_checkpoint=self.save)
        self._checkpoint_connector = SimpleNamespace(dump_checkpoint=lambda weights_only: {})
        self.fast_dev_run, self.is_global_zero, self.loggers = False, True, ()
        self.world_size, self.accumulate_grad_batches, self.global_step = 2, 1, 0

    def save(self, content: Any, path: Path) -> None:
        self.saved.append(self.global_step)
        self.now += self.cost

    def run(self, steps: int) -> list[int]:
        trainer: Any = self
        module: Any = nn.Linear(1, 1)
        self.callback.on_train_start(trainer, module)
        for self.global_step in range(steps):
            self.callback.on_train_batch_start(trainer, module, None, self.global_step)
            self.now += 1
        return self.saved


@pytest.mark.parametrize(
    ("settings", "cost", "steps"),
    [
        ({}, 0, [10, 20, 30]),
        ({"every_seconds": 15}, 0, [15, 30]),
        ({"every_steps": 13}, 0, [10, 13, 23, 26, 36, 39]),
        ({"every_seconds": None, "every_steps": 13}, 0, [13, 26, 39]),
        ({"every_seconds": None}, 0, []),
        ({}, 0.25, [10, 35]),  # a hundredth of the time
    ],
)
def test_when_they_are_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    cost: float,
    steps: list[int],
) -> None:
    clock = Clock(Checkpoints(str(tmp_path), **settings), cost)
    monkeypatch.setattr(checkpoint, "time", clock)
    found = clock.run(40)
    assert found == steps


def test_the_last_two_are_kept_and_of_a_finished_run_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = small_base(tmp_path / "outputs"), tmp_path / "run"
    cfg = composed(
        *("train", "stage=lora", *SMALL, *few_images(), "trainer.max_steps=12", CRASH),
        *("callbacks.checkpoint.every_steps=2", "logger=none", f"base_ckpt={base}"),
    )
    monkeypatch.setenv("CRASH", "9")
    with pytest.raises(Crashed):
        train(cfg, folder)
    found = {path.stem: path for path in (folder / "checkpoints").glob("*.ckpt")}
    steps = {name: read_checkpoint(path, MOST)["global_step"] for name, path in found.items()}
    assert steps == {"last": 8, "previous": 6}
    monkeypatch.delenv("CRASH")
    train(cfg, folder)
    (last,) = (folder / "checkpoints").glob("*.ckpt")
    assert read_checkpoint(last, MOST)["global_step"] == 12
    assert last.stat().st_size < 100_000


@pytest.mark.parametrize("option", ["callbacks.checkpoint=null", "+trainer.fast_dev_run=true"])
def test_without_them_nothing_is_left(tmp_path: Path, option: str) -> None:
    base = small_base(tmp_path / "outputs")
    few = ("train", "stage=lora", *SMALL, *few_images(), "logger=none", "trainer.max_steps=2")
    train(composed(*few, f"base_ckpt={base}", option), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    clock = Clock(Checkpoints(str(tmp_path)), 0)
    module: Any = nn.Linear(1, 1)
    module.weight.data.fill_(float("nan"))
    clock.callback._save(clock, module)  # type: ignore[arg-type]
    assert clock.saved == []
