import io
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import SMALL, composed, few_images, small_base
from omegaconf import OmegaConf
from PIL import Image

from lora_mnist import MLP, add_lora, load_adapter, lora_parameters, merge_lora, save_adapter
from lora_mnist.errors import UserError
from lora_mnist.side_by_side import SideBySide

NET = SMALL[0]


def small_net(outputs: Path, seed: int = 0) -> MLP:
    net = MLP(hidden_sizes=[16])
    net.load_state_dict(torch.load(small_base(outputs, seed), weights_only=True)["state_dict"])
    return net


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters on it, one on another base, and one that is none."""
    outputs = tmp_path_factory.mktemp("outputs")
    for run, seed, base in (("lora/other", 0, 1), ("lora/one", 1, 0), ("multirun/a/two", 2, 0)):
        net = small_net(outputs, base)
        torch.manual_seed(seed)
        for parameter in lora_parameters(add_lora(net)):
            torch.nn.init.normal_(parameter, std=0.2)
        save_adapter(net, outputs / run / "adapter")
    broken = outputs / "lora" / "broken" / "adapter"
    broken.mkdir(parents=True)
    (broken / "adapter_config.json").write_text("{}")
    return outputs


def sides(outputs: Path, *overrides: str) -> SideBySide:
    cfg = composed("demo", NET, *few_images()[:1], f"paths.outputs={outputs}", *overrides)
    before = OmegaConf.to_yaml(cfg)
    made = SideBySide(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    return made


@pytest.fixture
def both(outputs: Path) -> SideBySide:
    return sides(outputs)


def expected(both: SideBySide, net: MLP, image: torch.Tensor) -> list[float]:
    batch, _ = both.data.on_after_batch_transfer((image[None], torch.empty(0)), 0)
    with torch.no_grad():
        answer: list[float] = net(batch).softmax(1)[0].tolist()
    return answer


def test_finds_every_adapter_under_outputs(both: SideBySide, outputs: Path) -> None:
    assert both.named == []
    found = both.adapters()
    assert set(found) == {"lora/other", "lora/one", "lora/broken", "multirun/a/two"}
    assert found["lora/one"] == outputs / "lora" / "one" / "adapter"


def test_the_base_alone(both: SideBySide, outputs: Path) -> None:
    image = both.data.test_set.images[0]
    answer = both.ask(image)
    assert answer.base == answer.adapted == expected(both, small_net(outputs), image)
    assert sum(answer.base) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, -1.0])
def test_the_scale_is_a_factor_of_the_update(both: SideBySide, outputs: Path, scale: float) -> None:
    image = both.data.test_set.images[0]
    answer = both.ask(image, ["lora/one"], scale)
    net = small_net(outputs)
    assert answer.base == expected(both, net, image)
    merge_lora(load_adapter(net, outputs / "lora" / "one" / "adapter", scale=scale))
    assert answer.adapted == pytest.approx(expected(both, net, image), abs=1e-5)
    assert answer.adapted != answer.base


@pytest.mark.parametrize("adapters", [["lora/one"], ["lora/one", "multirun/a/two"]])
def test_at_zero_and_switched_off_both_are_the_base(
    both: SideBySide, outputs: Path, adapters: list[str]
) -> None:
    """Bit for bit, also after other scales, which leave nothing behind."""
    net = small_net(outputs)
    for image in both.data.test_set.images[:20]:
        before = both.ask(image, adapters)
        for scale, enabled in ((0.0, True), (1.0, False), (0.0, False)):
            answer = both.ask(image, adapters, scale, enabled)
            assert answer.base == answer.adapted == expected(both, net, image)
        assert both.ask(image, adapters) == before != both.ask(image, adapters, 1.5)


def test_several_are_stacked(both: SideBySide, outputs: Path) -> None:
    image = both.data.test_set.images[0]
    net = small_net(outputs)
    for run in ("lora/one", "multirun/a/two"):
        load_adapter(net, outputs / run / "adapter", name=run)
    answer = both.ask(image, ["lora/one", "multirun/a/two"])
    assert answer.adapted == expected(both, net, image)


def test_the_weight_of_the_configuration_counts(outputs: Path) -> None:
    adapter = f"adapter={{path:{outputs}/lora/one,scale:0.5}}"
    weighted, plain = sides(outputs, adapter), sides(outputs)
    assert weighted.named == ["lora/one"]
    assert set(weighted.adapters()) == set(plain.adapters())
    image = plain.data.test_set.images[0]
    half = weighted.ask(image, ["lora/one"]).adapted
    assert half == pytest.approx(plain.ask(image, ["lora/one"], 0.5).adapted, abs=1e-6)


def test_the_adapter_brings_its_base(tmp_path: Path) -> None:
    net = small_net(tmp_path, seed=1)
    save_adapter(add_lora(net), tmp_path / "lora" / "a" / "adapter")
    small_base(tmp_path, seed=1)
    sha = sides(tmp_path).ask(torch.zeros(1, 28, 28, dtype=torch.uint8), ["lora/a"])
    (tmp_path / "base" / "mnist.ckpt").rename(tmp_path / "base" / f"mnist-{base_of(tmp_path)}.ckpt")
    small_base(tmp_path, seed=0)
    again = sides(tmp_path).ask(torch.zeros(1, 28, 28, dtype=torch.uint8), ["lora/a"])
    assert again == sha != sides(tmp_path).ask(torch.zeros(1, 28, 28, dtype=torch.uint8))


def base_of(outputs: Path) -> str:
    from lora_mnist.lora import read_base_sha256

    sha256 = read_base_sha256(outputs / "lora" / "a" / "adapter")
    assert sha256
    return sha256[:12]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora/broken", "expected a readable"),
        ("lora/other", "is not in"),
        ("lora/none", "adapter=lora/none: expected an adapter in"),
        ("../..", r"adapter=\.\./\.\.: expected an adapter in"),
        ("/", "adapter=/: expected an adapter in"),
    ],
)
def test_a_bad_adapter_is_refused_and_the_base_goes_on(
    both: SideBySide, outputs: Path, name: str, message: str
) -> None:
    small_base(outputs, seed=0)
    image = both.data.test_set.images[0]
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            both.ask(image, [name])
        with pytest.raises(UserError, match=message):
            both.prepare([name])
    assert both.ask(image).base == both.ask(image, ["lora/one"]).base


def test_a_mended_adapter_is_found_again(outputs: Path, tmp_path: Path) -> None:
    small_base(tmp_path)
    both = sides(tmp_path)
    with pytest.raises(UserError):
        both.prepare(["lora/a"])
    save_adapter(add_lora(small_net(tmp_path)), tmp_path / "lora" / "a" / "adapter")
    both.adapters()
    both.prepare(["lora/a"])


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_is_a_number(both: SideBySide, scale: float) -> None:
    with pytest.raises(ValueError, match=f"^scale={scale}: expected a finite number$"):
        both.ask(both.data.test_set.images[0], ["lora/one"], scale)


def test_mistakes_of_the_base(both: SideBySide, outputs: Path) -> None:
    images, labels = both.data.test_set.images, both.data.test_set.labels
    wrong = [n for n, image in enumerate(images) if best(both.ask(image).base) != labels[n]]
    assert wrong
    assert both.mistakes() == wrong == both.mistakes(["lora/one"])
    assert both.mistakes(label=9) == [n for n in wrong if labels[n] == 9]


def best(probabilities: Any) -> int:
    return int(torch.tensor(probabilities).argmax())


def test_reads_drawings_as_predict_reads_pictures(both: SideBySide, tmp_path: Path) -> None:
    picture = Image.fromarray((255 - both.data.test_set.images[0, 0]).numpy()).resize((196, 196))
    picture.save(tmp_path / "picture.png")
    assert torch.equal(
        both.read((tmp_path / "picture.png").read_bytes()),
        both.data.read_picture(tmp_path / "picture.png"),
    )


def test_an_empty_drawing(both: SideBySide) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (196, 196), (0, 0, 0, 255)).save(file, "PNG")
    with pytest.raises(ValueError, match="^nothing on it$"):
        both.read(file.getvalue())
    with pytest.raises(ValueError, match="no readable picture"):
        both.read(b"")
