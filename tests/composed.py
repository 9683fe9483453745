"""Configurations without a command line, and runs that are small enough to have many of."""

import copy
import io
import logging
import struct
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from helpers.commands import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError
from safetensors.torch import load_file
from torch import nn

from lora_mnist import MLP, add_lora, load_adapter, lora_parameters, save_adapter
from lora_mnist.classifier.base import write_base
from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.train import train
from lora_mnist.config.run import CLASSIFIER
from lora_mnist.data import MNIST
from lora_mnist.lora.peft_lora import WEIGHTS_NAME


def _few_images(data_dir):
    """Overrides for 4,000 training images, 500 of which are held out, and 500 test images."""
    raw = Path(data_dir, "MNIST", "raw")
    raw.mkdir(parents=True)
    for name, count in (("train", 4_000), ("t10k", 500)):
        images, labels = MNIST("MNIST", ROOT / "data").load(train=name == "train")
        for kind, tensor in (("images-idx3", images[:count, 0]), ("labels-idx1", labels[:count])):
            # Type and number of dimensions, the dimensions, the bytes.
            header = struct.pack(f">BBBB{tensor.ndim}I", 0, 0, 8, tensor.ndim, *tensor.shape)
            content = tensor.to(torch.uint8).contiguous().numpy().tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + content)
    return (f"data.data_dir={data_dir}", "data.val_size=500")


_folder = TemporaryDirectory()
FEW = _few_images(_folder.name)
#: A network of 12,730 parameters, which sees all test images in milliseconds; nothing is drawn.
SMALL = ("net.hidden_sizes=[16]", "trainer=cpu", "figures=false")
#: A run of it, on few images, that leaves nothing behind but its results.
QUICK = (*SMALL, *FEW, "logger=none", "callbacks.checkpoint=null", "trainer.max_steps=3")


def composed(entry, *overrides):
    """The configuration of ``python <entry>.py <overrides>``.

    Composing takes a tenth of a second. So it is done once for each choice of groups, and the other
    overrides are applied to a copy, as Hydra would.
    """
    chosen = []
    for override in overrides:
        group = override.partition("=")[0]
        if (ROOT / "configs" / group).is_dir() or group in ("hydra.searchpath", CLASSIFIER):
            chosen.append(override)
    cfg = copy.deepcopy(_composed(entry, *chosen))
    values = OverridesParser.create().parse_overrides([o for o in overrides if o not in chosen])
    for value in values:
        key = value.get_key_element().lstrip("+~")
        if value.is_delete():
            group, _, name = key.rpartition(".")
            node = OmegaConf.select(cfg, group) if group else cfg
            with open_dict(node):
                del node[name]
            continue
        try:
            OmegaConf.update(cfg, key, value.value(), merge=True, force_add=value.is_add())
        except ConfigAttributeError as error:
            raise ConfigCompositionException from error  # as Hydra does
    return cfg


@lru_cache
def _composed(entry, *choices):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(entry, list(choices))


def run(outputs, *overrides):
    """The results of a quick training; its folder is the newest of ``outputs``."""
    return train(composed("train", *QUICK, f"paths.outputs={outputs}", *overrides))


def evaluated(outputs, adapter="latest", *overrides):
    """The results of testing an adapter on few images."""
    options = (*SMALL, *FEW, f"paths.outputs={outputs}", f"adapter={adapter}")
    return evaluate(composed("eval", *options, *overrides))


def load_adapter_tensors(folder):
    """The tensors of the adapter that a run has left."""
    return load_file(folder / "adapter" / WEIGHTS_NAME)


def small_base(outputs, seed=0):
    """The current base of :data:`SMALL` in a folder for ``paths.outputs``."""
    path = outputs / "base" / "mnist.ckpt"
    write_base(_trained(seed), path)
    return path


@lru_cache
def _trained(seed):
    """A small network after 300 batches: it gets nine out of ten images right."""
    images, labels = MNIST("MNIST", ROOT / "data").load(train=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(hidden_sizes=[16])
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(300):
        chosen = torch.randint(50_000, (50,), generator=generator)
        adam.zero_grad()
        logits = net((images[chosen] / 255 - 0.1307) / 0.3081)
        torch.nn.functional.cross_entropy(logits, labels[chosen]).backward()
        adam.step()
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def small_net(outputs, *adapters):
    """The current base of ``outputs``, with adapters on it, in eval mode."""
    net = MLP(hidden_sizes=[16])
    base = torch.load(outputs / "base" / "mnist.ckpt", weights_only=True)
    net.load_state_dict(base["state_dict"])
    for adapter in adapters:
        load_adapter(net, adapter)
    return net.eval()


def small_adapter(outputs, run, seed=0, std=0.05):
    """An adapter with random values on that base, in the folder that a run would leave it in."""
    net = add_lora(small_net(outputs))
    torch.manual_seed(seed)
    for parameter in lora_parameters(net):
        nn.init.normal_(parameter, std=std)
    return save_adapter(net, outputs / run / "adapter")


@contextmanager
def logged(name):
    """The lines of the logger ``name``, wherever a command in this process has sent it before."""
    logger, text = logging.getLogger(name), io.StringIO()
    handler, level = logging.StreamHandler(text), logger.level
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False  # to streams that an earlier test closed
    logger.setLevel(logging.INFO)
    try:
        yield text
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
