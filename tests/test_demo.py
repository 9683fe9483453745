import builtins
import io
import json
import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import SMALL, composed, few_images, logged, small_base
from PIL import Image, ImageDraw

from lora_mnist import MLP, add_lora, lora_parameters, save_adapter
from lora_mnist.demo import PageDesk, demo
from lora_mnist.errors import UserError
from lora_mnist.show.page import Question
from lora_mnist.side_by_side import SideBySide

NET = SMALL[0]
GOOD, BROKEN = "lora/2026-01-01", "lora/2026-01-02"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter on it, and a later one that is none."""
    outputs = tmp_path_factory.mktemp("outputs")
    net = MLP(hidden_sizes=[16])
    net.load_state_dict(torch.load(small_base(outputs), weights_only=True)["state_dict"])
    torch.manual_seed(0)
    for parameter in lora_parameters(add_lora(net)):
        torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(net, outputs / GOOD / "adapter")
    (outputs / GOOD / "results.json").write_text(json.dumps({"target": "9"}))
    (outputs / BROKEN / "adapter").mkdir(parents=True)
    (outputs / BROKEN / "adapter" / "adapter_config.json").write_text("{}")
    return outputs


@pytest.fixture
def desk(outputs: Path) -> PageDesk:
    cfg = composed("demo", NET, few_images()[0], f"paths.outputs={outputs}")
    return PageDesk(SideBySide(cfg), [GOOD])


def drawing(line: list[tuple[int, int]]) -> bytes:
    picture, file = Image.new("RGBA", (196, 196), (0, 0, 0, 255)), io.BytesIO()
    ImageDraw.Draw(picture).line(line, fill="white", width=14)
    picture.save(file, "PNG")
    return file.getvalue()


ONE = drawing([(100, 30), (96, 160)])


def question(**given: Any) -> Question:
    return Question(
        given.get("png"),
        given.get("test"),
        given.get("adapters", [GOOD]),
        given.get("scale", 1.0),
        given.get("enabled", True),
    )


def test_the_menu_says_what_an_adapter_repairs(desk: PageDesk) -> None:
    assert {*desk.menu()} == {(f"9: {GOOD}", GOOD), (BROKEN, BROKEN)}
    assert desk.first_choice() == [GOOD]
    assert desk.classes == [*"0123456789"]


def test_a_drawing(desk: PageDesk) -> None:
    sheet = desk.answer(question(png=ONE))
    assert sheet.seen is not None
    assert sheet.seen.shape == (1, 28, 28)
    assert max(sheet.base) == sheet.base[1]
    assert sheet.base != sheet.adapted
    assert sheet.text.startswith("The base says 1 (")
    assert ", the adapted network " in sheet.text
    assert sheet.problem == ""


@pytest.mark.parametrize("off", [{"scale": 0.0}, {"enabled": False}, {"adapters": []}])
def test_without_the_adapter_both_agree(desk: PageDesk, off: dict[str, Any]) -> None:
    sheet = desk.answer(question(png=ONE, **off))
    assert sheet.base == sheet.adapted == desk.answer(question(png=ONE)).base
    assert ("adapted" in sheet.text) == (off != {"adapters": []})


def test_a_test_image_counts_instead_of_a_drawing(desk: PageDesk) -> None:
    sheet = desk.answer(question(png=ONE, test=3))
    assert torch.equal(sheet.seen, desk.test_image(3))  # type: ignore[arg-type]
    assert sheet.text.startswith("Test image 3 is a 0. The base says ")
    for number in (-1, 10**6):  # whatever a browser sends
        assert desk.answer(question(png=ONE, test=number)).text.startswith("The base says 1 (")


def test_nothing_drawn(desk: PageDesk) -> None:
    assert desk.answer(question()) == desk.answer(question(adapters=[]))
    sheet = desk.answer(question(png=drawing([])))
    assert (sheet.base, sheet.problem) == ((), "the drawing: nothing on it")


@pytest.mark.parametrize("drawn", [None, ONE])
def test_a_bad_adapter_is_a_message(desk: PageDesk, drawn: bytes | None) -> None:
    sheet = desk.answer(question(png=drawn, adapters=[GOOD, BROKEN]))
    assert "expected peft_type LORA in adapter_config.json" in sheet.problem
    assert "\n" not in sheet.problem
    assert sheet.base == sheet.adapted  # the base goes on
    assert bool(sheet.base) == bool(drawn)


def test_from_one_mistake_to_the_next(desk: PageDesk) -> None:
    seen: list[int | None] = [None]
    for _ in range(3):
        number, reason = desk.next_mistake(question(test=seen[-1]), None)
        assert number is not None
        assert reason == ""
        seen.append(number)
        sheet = desk.answer(question(test=number))
        assert f"is a {int(torch.tensor(sheet.base).argmax())}." not in sheet.text
    assert len({*seen}) == 4
    first, _ = desk.next_mistake(question(test=10**6), None)
    assert first == seen[1]
    assert desk.next_mistake(question(adapters=[BROKEN]), None)[0] == first


def test_of_one_class(desk: PageDesk) -> None:
    numbers = [desk.next_mistake(question(), label)[0] for label in range(10)]
    for label, number in enumerate(numbers):
        if number is not None:
            assert desk.answer(question(test=number)).text.startswith(
                f"Test image {number} is a {label}. "
            )


def test_serves_the_page(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is named; what is wrong with the latest adapter is for the page to say."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra demo is not installed")
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    served: list[tuple[str, str]] = []

    def run(server: Any, sockets: list[socket.socket]) -> None:
        thread = threading.Thread(target=server.run_in_thread, args=[sockets])
        thread.start()
        try:
            host, port = sockets[0].getsockname()
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(f"http://{host}:{port}/", timeout=60) as answer:
                served.append((answer.headers["content-security-policy"], answer.read().decode()))
        finally:
            server.should_exit = True
            thread.join()

    monkeypatch.setattr(uvicorn.Server, "run_in_thread", uvicorn.Server.run, raising=False)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    cfg = composed("demo", NET, few_images()[0], f"paths.outputs={outputs}", "server.port=0")
    with logged("lora_mnist.demo") as text:
        assert demo(cfg) is None
    assert text.getvalue().startswith("page: http://127.0.0.1:")
    ((policy, page),) = served
    assert policy.startswith("default-src 'self' ")
    assert "http" not in policy
    assert GOOD in page
    assert "fonts.g" not in page


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("server.port=70000",), "server.port=70000: expected an integer from 0 to 65535"),
        (("server.port=true",), "server.port=True: expected an integer from 0 to 65535"),
        (("server.host=203.0.113.1", "server.port=0"), "server.host=203.0.113.1 server.port=0: "),
        (("adapter={outputs}/lora/2026-01-02", "server.port=0"), "adapter={outputs}/lora/2026-01"),
        (("adapter=3", "server.port=0"), "adapter=3: expected a folder, latest, or"),
        (("base_ckpt=none.ckpt", "server.port=0"), "base_ckpt=none.ckpt: no such file"),
        (("+images=x",), "images=x: nothing reads this key with stage=demo"),
        (("data.std=0", "server.port=0"), "data.std=0: expected"),
    ],
)
def test_refuses(outputs: Path, overrides: tuple[str, ...], message: str) -> None:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    given = [o.replace("{outputs}", str(outputs)) for o in overrides]
    cfg = composed("demo", NET, few_images()[0], f"paths.outputs={outputs}", *given)
    with pytest.raises(UserError) as caught:
        demo(cfg)
    assert str(caught.value).startswith(message.replace("{outputs}", str(outputs)))


def test_a_port_in_use(outputs: Path) -> None:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        cfg = composed("demo", f"server.port={port}", f"paths.outputs={outputs}")
        with pytest.raises(UserError, match=f"server.port={port}: .* in use; expected an address"):
            demo(cfg)


def test_without_a_base(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    options = (NET, few_images()[0], f"paths.outputs={tmp_path}", "server.port=0")
    with pytest.raises(UserError, match="make it with: python train.py stage=pretrain"):
        demo(composed("demo", *options))


def test_without_the_extra(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    actual = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "gradio":
            raise ImportError("No module named 'gradio'", name="gradio")
        return actual(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    done = cli("demo.py")
    assert done.code == 2
    assert done.err == (
        "demo.py: the package gradio is missing; expected the extra demo: "
        'pip install -e ".[demo]"\n'
    )


def test_defines_nothing_that_it_does_not_use() -> None:
    keys = {"stage", "data", "net", "base_name", "base_ckpt", "adapter", "allow_other_base"}
    assert set(composed("demo")) == {*keys, "paths", "server"}
    assert composed("demo").server == {"host": "127.0.0.1", "port": 7860}
