"""The base and the adapters that a command finds, and the settings that a run brings."""

import os
import sys
from pathlib import Path

import pytest
import torch
from composed import SMALL, composed, small_adapter, small_net
from helpers.commands import ROOT, only_run, read_results, refused
from helpers.stranger import fresh, move_in

from lora_mnist import MLP
from lora_mnist.adapters import load_saved_adapter, resolve_and_load_base
from lora_mnist.choices import add_new_adapter
from lora_mnist.disk.base import versioned_base_path, write_base
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.weight import lora_adapters, lora_weights


@pytest.fixture
def outputs(outputs):
    """The current base, which has a file of its own, and two adapters: 2026-b is the older one."""
    state = small_net(outputs).state_dict()
    write_base(state, versioned_base_path(outputs / "base", "mnist", fingerprint(state)))
    for seconds, name in enumerate(("2026-b", "2026-a")):
        finished(outputs, f"lora/{name}", seconds)
    return outputs


def finished(outputs, run, seconds):
    """An adapter that was finished so many seconds after some time."""
    file = small_adapter(outputs, run, seed=seconds) / "adapter_config.json"
    os.utime(file, (10**9 + seconds, 10**9 + seconds))


def config(outputs, *overrides):
    return composed("eval", *SMALL, f"paths.outputs={outputs}", *overrides)


def test_an_adapter_finds_its_own_base(outputs):
    """Also after another has become the current one; what is asked for wins, where it fits."""
    own = fingerprint(small_net(outputs).state_dict())
    other = MLP(hidden_sizes=[16]).state_dict()
    write_base(other, outputs / "base" / "mnist.ckpt")
    for adapter, sha256 in (("latest", own), (f"{outputs}/lora/2026-b", own), ("null", "")):
        cfg, net, base = resolve_and_load_base(config(outputs, f"adapter={adapter}"))
        assert base.sha256 == (sha256 or fingerprint(other))
        assert not any(module.training for module in net.modules())
        load_saved_adapter(cfg, net, base.sha256)
        assert bool(lora_adapters(net)) == bool(sha256)
    asked = f"base_ckpt={outputs}/base/mnist.ckpt"
    cfg, net, base = resolve_and_load_base(config(outputs, "adapter=latest", asked))
    assert base.sha256 == fingerprint(other)
    reason = refused(load_saved_adapter, cfg, net, base.sha256)
    assert "expected the same base, or allow_other_base=true" in reason
    for path in (outputs / "base").glob("mnist-*"):
        path.unlink()
    cfg = config(outputs, "adapter=latest")
    assert f"its base is not here; expected base_ckpt=FILE, the weights with SHA-256 {own}" in (
        refused(resolve_and_load_base, cfg)
    )
    cfg.allow_other_base = True
    cfg, net, base = resolve_and_load_base(cfg)
    load_saved_adapter(cfg, net, base.sha256)
    assert cfg.adapter == str(outputs / "lora" / "2026-a" / "adapter")
    assert lora_adapters(net)


def test_the_latest_is_the_newest_by_time(outputs, cli):
    """Whatever the folders are called; further processes of a command get the folder itself."""

    def latest():
        cfg = composed("eval", *SMALL, f"paths.outputs={outputs}", "adapter=latest")
        return Path(resolve_and_load_base(cfg)[0].adapter).parent.name

    assert latest() == "2026-a"
    finished(outputs, "lora/nines", 5)
    assert latest() == "nines"
    finished(outputs, "lora/2026-b", 7)
    assert latest() == "2026-b"
    picture = ROOT / "docs" / "repaired.png"
    cli("predict.py", *SMALL[:1], "adapter=latest", f"images={picture}").ok()
    assert sys.argv[-1] == f"adapter={outputs}/lora/2026-b/adapter"


def test_rank_auto_is_a_layers_full_rank_where_that_is_smaller():
    cfg = composed("train", "stage=lora", "lora.rank=auto", "lora.rank_pattern={linear3: 2}")
    net = MLP(hidden_sizes=[100, 20])
    add_new_adapter(cfg, net)
    ranks = {name: len(weight.adapters[0].lora_A) for name, weight in lora_weights(net).items()}
    assert ranks == {"linear1": 64, "linear2": 20, "linear3": 2}


@pytest.mark.slow
def test_what_is_typed_goes_before_what_a_run_brings(cli, tmp_path, monkeypatch):
    """Its network, its images and its base are found from anywhere."""
    here, elsewhere = move_in(tmp_path / "here", monkeypatch), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(here))
    torch.save(fresh(width=5).state_dict(), "mine.pt")
    cli(
        *("train.py", "experiment=repair", "data=folder", 'data.data_dir="~/photos"', "net=custom"),
        *("net._target_=nets_of_a_stranger.Net", "net.width=5", "base_ckpt=mine.pt", "digit=dog"),
        *("data.replay=10", "data.batch_size=5", "trainer.max_steps=6", "trainer=cpu"),
        *("callbacks.checkpoint=null", "logger=none", "figures=false", "data.image_size=8"),
        here=here,
    ).ok()
    options = ("adapter=latest", "trust=true", "trainer=cpu", "figures=false")
    run = tmp_path / "changed"
    cli("eval.py", "data.mean=0.25", *options, f"hydra.run.dir={run}", here=elsewhere).ok()
    results = read_results(run)
    assert (results["mean"], results["dataset"]) == (0.25, "photos")
    assert "typed: data.mean" in (run / "eval.log").read_text()
    done = cli("eval.py", "-m", "scale=1,0.5", *options)
    assert done.code != 0
    assert "adapter=latest: expected the folder itself in a sweep" in done.err
    assert f"adapter={only_run(tmp_path / 'outputs', 'lora')}" in done.err
