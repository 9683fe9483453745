from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.nets import batches, randomize
from helpers.trainings import Recorded, trainer
from torch.nn.functional import cross_entropy
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from lora_mnist import CNN, MLP, add_lora, lora_parameters
from lora_mnist.data import MNIST
from lora_mnist.errors import TrainingError
from lora_mnist.measure.counts import count_both
from lora_mnist.measure.predictions import compute_predictions
from lora_mnist.show.loggers import logged_metrics
from lora_mnist.training.callbacks import TrainedAverage
from lora_mnist.training.module import ClassifierModule, Loss


def test_target_weight_is_the_share_of_the_images_to_learn():
    """In a batch of one kind, and by default, each image counts alike."""
    logits = 3 * torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 2, 2, 0, 1, 1, 0])  # the last four are replayed
    losses = cross_entropy(logits, labels, reduction="none")
    expected = 0.2 * losses[:3].mean() + 0.8 * losses[3:].mean()
    torch.testing.assert_close(Loss(target_weight=0.2)(logits, labels, 4), expected)
    for loss, replayed in ((Loss(), 4), (Loss(0.2), 0), (Loss(0.2), 7)):
        assert torch.equal(loss(logits, labels, replayed), losses.mean())


@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_deep_network_is_compiled_as_one_graph(tmp_path, monkeypatch, has_adapter):
    """As two with an adapter: the first pass puts the base into eval mode."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    net = MLP(6, [5] * 9, 3)
    module = Recorded(add_lora(net) if has_adapter else net, compiles=True)
    trainer(tmp_path, max_steps=3).fit(module, batches())
    assert len(graphs) == 1 + has_adapter
    assert not [name for name in module.state_dict() if not name.startswith("net.")]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_loss_is_that_of_every_second_steps_last_batch(tiny, tmp_path, accumulate):
    settings = {"max_steps": 4, "log_every_n_steps": 2, "accumulate_grad_batches": accumulate}
    module = Recorded(tiny)
    trainer(tmp_path, **settings).fit(module, batches())
    assert len(module.logged) == 4 * accumulate
    for batch in (2 * accumulate - 1, -1):
        assert module.logged[batch].item() == pytest.approx(module.losses[batch])


def test_a_loss_that_is_not_finite_ends_training(tiny, tmp_path):
    with torch.no_grad():
        tiny.linear2.bias[0] = float("nan")
    fit = trainer(tmp_path, max_steps=4, log_every_n_steps=2)
    with pytest.raises(TrainingError, match="optimizer.lr=0.1: the loss is nan at step 2; exp"):
        fit.fit(Recorded(tiny), batches())


def test_validation_logs_the_counts_of_the_table(tiny, tmp_path):
    """Those that an evaluation of the same network gives, and once more when it is repeated."""
    randomize(add_lora(tiny))
    module = Recorded(tiny, targets=[1])
    counts = count_both(compute_predictions(tiny, batches()), [1])["after"]
    tags = logged_metrics({"val": counts}, module.classes, [1])
    tags = {tag: tags[tag] for tag in tags if tag not in ("val/repaired", "val/broken")}
    assert {"val/loss", "val/precision_of_target", "val/accuracy_per_class/dog"} <= {*tags}
    for _ in range(2):
        (logged,) = trainer(tmp_path).validate(module, batches(), verbose=False)
        assert logged == pytest.approx(tags)


def test_counting_many_classes_takes_little_memory(tmp_path):
    """Also where torch may only use deterministic operations."""
    count = 300
    module = Recorded(torch.nn.Linear(6, count), classes=list(map(str, range(count))))
    fit = trainer(tmp_path, deterministic=True)
    with profile(profile_memory=True) as profiled:
        fit.validate(module, batches(), verbose=False)
    torch.use_deterministic_algorithms(False)
    assert max(event.self_cpu_memory_usage for event in profiled.events()) <= 8 * count**2


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_training_step_computes_where_the_batch_is(tmp_path, init):
    """In training, on a device that refuses to mix with the CPU, as a GPU does."""
    net = add_lora(MLP(hidden_sizes=[16]), init=init, dropout=0.5)
    module = Recorded(net, replay=3, loss=Loss(target_weight=0.5)).to("meta")
    module.trainer = trainer(tmp_path)
    pixels = torch.empty(8, 1, 28, 28, dtype=torch.uint8, device="meta")
    images = MNIST(data_dir=tmp_path).normalize(pixels)
    batch = images, torch.empty(8, dtype=torch.int64, device="meta")
    ClassifierModule.training_step(module, batch, 0).backward()
    assert all(parameter.grad.is_meta for parameter in lora_parameters(net))


class Transfers(TorchDispatchMode):
    """Notes what makes a GPU wait, or copies to it: a tensor of the CPU's, or a number read."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        tensors = [result, *args]  # or lists of them
        for each in [each for each in tensors if isinstance(each, list | tuple)]:
            tensors += each
        is_here = [each.is_meta for each in tensors if isinstance(each, torch.Tensor)]
        if "_local_scalar_dense" in str(function) or not all(is_here):
            self.noted.append(str(function))
        return result


@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_after_the_first_step_nothing_is_copied_to_the_device_but_the_batch(tmp_path, init):
    net = add_lora(CNN(), init=init, dropout=0.5)
    module = Recorded(net, replay=3, loss=Loss(target_weight=0.5)).to("meta")
    module.trainer = SimpleNamespace(world_size=1, log_every_n_steps=0, global_step=0)
    module.trainer.callback_metrics = {}
    dataset, average = MNIST(data_dir=tmp_path), TrainedAverage()
    pixels = torch.empty(8, 1, 28, 28, dtype=torch.uint8, device="meta")
    labels = torch.empty(8, dtype=torch.int64, device="meta")
    average.on_train_start(module.trainer, module)

    def step():
        average.on_train_batch_start(module.trainer, module, None, 0)
        loss = ClassifierModule.training_step(module, (dataset.normalize(pixels), labels), 0)
        loss.backward()
        module.trainer.global_step += 1
        average.on_train_batch_end(module.trainer, module, None, None, 0)

    step()
    with Transfers() as transfers:
        step()
    assert transfers.noted == []
