"""Adapters on disk, and the scaled sum of several as one."""

import json

import pytest
import torch
from helpers.nets import TinyNet, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lora_mnist.lora.adapter import load_adapter, save_adapter
from lora_mnist.lora.base_state import fingerprint
from lora_mnist.lora.combine import combine_adapters, sum_adapters
from lora_mnist.lora.model import add_lora, lora_names, set_lora_enabled, set_lora_scale
from lora_mnist.lora.peft import CONFIG_NAME, WEIGHTS_NAME, read_metadata
from lora_mnist.lora.weight import lora_adapters

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def base(change=0.0):
    torch.manual_seed(0)
    net = TinyNet()
    with torch.no_grad():
        net.linear1.bias[0] += change
    return net


@pytest.fixture
def adapted():
    return randomize(add_lora(base(), rank=2, alpha=3))


@pytest.fixture
def folder(adapted, tmp_path):
    return save_adapter(adapted, tmp_path / "adapter")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip_as_trained(adapted, folder, tmp_path, caplog):
    loaded = load_adapter(base(), folder)
    assert torch.equal(loaded(X), adapted(X))
    set_lora_scale(loaded, 0)
    assert content(save_adapter(loaded, tmp_path / "again")) == content(folder)
    assert "saved as trained, without its scale" in caplog.text
    assert content(folder).keys() == {WEIGHTS_NAME, CONFIG_NAME}
    metadata = {
        "base_sha256": fingerprint(base().state_dict()),
        "a": "ä",
        "z": [1, {"b": None}],
        "": "",
    }
    folders = [save_adapter(adapted, tmp_path / str(n), metadata=metadata) for n in range(8)]
    assert all(content(each) == content(folders[0]) for each in folders)
    assert read_metadata(folders[0]) == metadata
    assert read_metadata(folder) == {"base_sha256": metadata["base_sha256"]}


def test_one_of_several_is_saved_and_loaded_by_name(adapted, tmp_path):
    add_lora(adapted, rank=1, name="b")
    for name, message in ((None, "one of .*: default, b"), ("c", "one of default, b")):
        with pytest.raises(ValueError, match=f"name={name}: expected {message}"):
            save_adapter(adapted, tmp_path / "c", name)
    with pytest.raises(ValueError, match="name=default: expected another name than"):
        load_adapter(adapted, save_adapter(adapted, tmp_path / "b", "b"), name="default")
    assert not (tmp_path / "c").exists()


def test_another_base_is_refused_by_fingerprint(adapted, tmp_path, caplog):
    folder = save_adapter(adapted, tmp_path, metadata={"dataset": "mnist"})
    other = base(change=1)
    here, there = (fingerprint(net.state_dict()) for net in (other, base()))
    with pytest.raises(ValueError, match=f"made for the base {there} on mnist, this one is {here}"):
        load_adapter(other, tmp_path)
    assert not lora_adapters(other)
    assert lora_adapters(load_adapter(other, tmp_path, allow_other_base=True))
    save_file(load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)  # as PEFT would
    assert read_metadata(folder) == {}
    assert lora_adapters(load_adapter(base(), folder))
    assert "does not say which base it was made for: not checked" in caplog.text


def config(**changes):
    def damage(folder):
        path = folder / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def tensor(key, value):
    def damage(folder):
        tensors = load_file(folder / WEIGHTS_NAME)
        tensors[f"base_model.model.{key}.weight"] = value
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(present, folder / WEIGHTS_NAME)

    return damage


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


A = torch.ones(2, 6)
DAMAGES = [
    (cut(WEIGHTS_NAME, -8), f"expected a readable {WEIGHTS_NAME}"),
    (lambda f: save_file({}, f / WEIGHTS_NAME), "holds no tensor"),
    (lambda f: (f / CONFIG_NAME).unlink(), f"expected a readable {CONFIG_NAME}"),
    (config(use_dora=True), "use_dora=True is not supported; expected False"),
    (config(peft_type="IA3"), "expected peft_type LORA"),
    (config(init_lora_weights="olora"), "init_lora_weights=olora is not supported"),
    (config(lora_alpha=-1), "alpha=-1: expected a finite number > 0"),
    (tensor("linear1.lora_B", None), "lora_B of linear1: expected a matrix"),
    (tensor("linear1.lora_A", A.T.contiguous()), r"lora_A of linear1: expected the shape \(6, 6\)"),
    (tensor("linear1.lora_A", A / 0), "lora_A of linear1: expected finite numbers"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_refuses_a_damaged_or_foreign_adapter(folder, damage, message):
    damage(folder)
    net = base()
    with pytest.raises(ValueError, match=message) as refusal:
        load_adapter(net, folder)
    assert str(refusal.value).startswith(f"{folder}: ")
    assert "\n" not in str(refusal.value)
    assert not lora_adapters(net)
    assert all(p.requires_grad for p in net.parameters())


def double():
    return base().double()


LAYERS = ["linear1", "linear2"]
ADAPTERS = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 2),
        "alpha": st.floats(0.1, 16),
        "use_rslora": st.booleans(),
        "target_modules": st.lists(st.sampled_from(LAYERS), min_size=1, unique=True),
    }
)


@settings(max_examples=12)
@given(
    options=st.lists(ADAPTERS, min_size=1, max_size=4),
    scales=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    first_rank=st.integers(1, 2),
)
def test_the_sum_is_that_of_the_stack(options, scales, first_rank, tmp_path_factory):
    tmp_path, x = tmp_path_factory.mktemp("sum"), X.double()
    stack, folders = double(), []
    for number, arguments in enumerate(options):
        first = arguments["target_modules"][0]
        net = randomize(add_lora(double(), **arguments, rank_pattern={first: first_rank}))
        folders.append(save_adapter(net, tmp_path / str(number)))
        load_adapter(stack, folders[-1], scale=scales[number])
    net = double()
    assert combine_adapters(net, folders, scales[: len(folders)], name="sum") is net
    assert lora_names(net) == ["sum"]
    save_adapter(net, tmp_path / "sum")
    torch.testing.assert_close(net(x), stack(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(load_adapter(double(), tmp_path / "sum")(x), net(x))
    set_lora_enabled(stack, False, "default")
    expected = stack(x)
    torch.testing.assert_close(sum_adapters(stack)(x), expected, rtol=1e-12, atol=1e-12)
    assert len(lora_names(stack)) == 1


def on_tiny(folder, **options):
    return save_adapter(randomize(add_lora(base(), **options)), folder)


def test_refused_sums_leave_the_model_and_its_adapters_alone(tmp_path):
    one, other = on_tiny(tmp_path / "a"), on_tiny(tmp_path / "bb", rank=2, alpha=64.0)
    save_adapter(add_lora(TinyNet()), tmp_path / "stranger")
    net = base()
    for folders, arguments, message in (
        ([other], {"scales": [3e38]}, "lora_B of linear1: expected finite numbers"),
        ([one, tmp_path / "stranger"], {"scales": [1, 1]}, "stranger: made for the base .*"),
    ):
        with pytest.raises(ValueError, match=message):
            combine_adapters(net, folders, **arguments)
        assert not lora_adapters(net)
        assert all(parameter.requires_grad for parameter in net.parameters())
    combine_adapters(net, [one, tmp_path / "stranger"], [1, -1], allow_other_base=True)
    assert lora_names(net) == ["default"]
    with pytest.raises(ValueError, match="scale=nan: expected a finite number"):
        set_lora_scale(net, float("nan"))
