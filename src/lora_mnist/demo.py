"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.adapters import Adapter, as_trained, find_adapters, load_adapters, load_base
from lora_mnist.classifier.dial import dial_curve
from lora_mnist.classifier.net import make_net, require_fit
from lora_mnist.data import ImageDataModule, make_data
from lora_mnist.data.images import viewable
from lora_mnist.errors import UserError, config_group, one_line, require_extra
from lora_mnist.lora import CONFIG_NAME, set_lora_scale
from lora_mnist.project import Run
from lora_mnist.settings import checked


class SideBySide:
    """A base and its adapters, asked about one image at a time.

    Attributes:
        data: its test images; it also brings drawings to the form of its images.
        chosen: the folders of the adapters of ``cfg.adapter``, or of the latest one, if any.
    """

    def __init__(self, cfg: DictConfig, run: Run | None = None) -> None:
        cfg = checked(cfg)
        if cfg.adapter is None and any(Path(cfg.paths.outputs, "lora").glob("*/adapter")):
            cfg.adapter = "latest"
        self.cfg = as_trained(cfg, run)
        self.data: ImageDataModule = make_data(self.cfg, "test", make_net(self.cfg))
        self._scales = {str(each.path): each.scale for each in find_adapters(self.cfg)}
        self.chosen = list(self._scales)
        self._last_loaded = lru_cache(maxsize=1)(self._load)

    def menu(self) -> list[tuple[str, str]]:
        """What to call each adapter, and its folder: the chosen ones, then the newest first."""
        outputs = Path(self.cfg.paths.outputs)
        files = list(outputs.rglob(CONFIG_NAME))
        files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
        folders = dict.fromkeys([*self.chosen, *(str(file.parent) for file in files)])
        return [(os.path.relpath(f, outputs).removesuffix("/adapter"), f) for f in folders]

    def network(self, folders: list[str], scale: float) -> nn.Module:
        """The network with the weights ``W + scale * sum_i s_i B_i A_i``; 0 gives the base.

        ``folders`` are those of the adapters, of which ``s_i`` are the scalings.
        """
        net, adapters = self._last_loaded(tuple(folders))
        for adapter in adapters:
            set_lora_scale(net, scale * adapter.scale, adapter.name)
        return net

    def _load(self, folders: tuple[str, ...]) -> tuple[nn.Module, list[Adapter]]:
        cfg = self.cfg.copy()
        cfg.adapter = [{"path": f, "scale": self._scales.get(f, 1.0)} for f in folders]
        net = make_net(cfg)
        load_base(cfg, net)
        adapters = load_adapters(cfg, net)
        require_fit(net, self.data, self.data.test_set)
        return net, adapters

    def opening_scale(self, folders: list[str]) -> float:
        """Where the slider stands at first: ``cfg.scale``, or what validation images advise."""
        if self.cfg.scale != "auto":
            return float(self.cfg.scale)
        with config_group("data"):
            self.data.setup("validate")
        if not folders or not len(self.data.val_set):
            return 1.0
        net = self.network(folders, 1.0)
        return float(dial_curve(net, self.data.batches(self.data.val_set))["advised"])

    @torch.no_grad()
    def ask(
        self, image: Tensor, folders: list[str], scale: float = 1.0
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Ask the base and the adapted :meth:`network` about an image, as the data has them.

        Returns:
            The probability of each class by its name: of the base, and of the adapted network.
        """
        batch, names = self.data.normalise(image[None]), self.data.classes
        base = self.network(folders, 0.0)(batch).softmax(dim=1)[0].tolist()
        adapted = self.network(folders, scale)(batch).softmax(dim=1)[0].tolist()
        return dict(zip(names, base, strict=True)), dict(zip(names, adapted, strict=True))

    @torch.no_grad()
    def next_mistake(self, folders: list[str], after: int) -> int | None:
        """The number of the next test image behind ``after`` that the base gets wrong, if any."""
        base, count = self.network(folders, 0.0), len(self.data.test_set)
        order = torch.arange(after + 1, after + 1 + count) % count
        for numbers in torch.split(order, self.data.eval_batch_size):
            images, labels = self.data.test_set.take(numbers.tolist())
            wrong = base(self.data.normalise(images)).argmax(dim=1) != labels
            if wrong.any():
                return int(numbers[wrong][0])
        return None


def build_page(sides: SideBySide) -> Any:
    """The page, a ``gradio.Blocks``: both networks are asked whenever image or scale changes."""
    import gradio as gr
    from torchvision.transforms.functional import to_pil_image

    def draw(drawing: Any) -> tuple[Tensor | None, str]:
        if not drawing or drawing["composite"] is None:
            return None, ""
        try:
            return sides.data.read_picture(Path(drawing["composite"])), ""
        except ValueError as error:
            return None, f"Draw with the mouse or a finger ({one_line(error)})."

    def mistake(number: int, folders: list[str]) -> tuple[int, Tensor | None, str]:
        found = sides.next_mistake(folders, number)
        if found is None:
            return -1, None, "The base gets every test image right."
        images, labels = sides.data.test_set.take([found])
        label = sides.data.classes[int(labels[0])]
        return found, images[0], f"Test image {found} is a {label}."

    def ask(image: Tensor | None, folders: list[str], scale: float) -> tuple[Any, Any, Any]:
        if image is None:
            return None, None, None
        return *sides.ask(image, folders, scale), to_pil_image(viewable(image))

    def slider(folders: list[str]) -> Any:
        value = sides.opening_scale(folders)
        label = "Scale: 0 is the base, 1 the adapter as trained"
        if folders and sides.cfg.scale == "auto":
            label += f"; validation images advise {value:g}"
        return gr.Slider(0, 2, value, step=0.05, label=label, elem_id="scale")

    with gr.Blocks(title="LoRA-MNIST", analytics_enabled=False) as page:
        image, number = gr.State(), gr.State(-1)
        with gr.Row():
            with gr.Column():
                pad = gr.Sketchpad(
                    type="filepath",
                    format="png",
                    canvas_size=(280, 280),
                    fixed_canvas=True,
                    layers=False,
                    transforms=(),
                    brush=gr.Brush(default_size=20, colors=["#000000"], color_mode="fixed"),
                    label="Draw",
                    elem_id="pad",
                )
                button = gr.Button("An image that the base gets wrong")
                seen = gr.Image(label="As the network sees it", format="png", height=200)
                note = gr.Markdown()
            with gr.Column():
                scale = slider(sides.chosen)
                menu = gr.Dropdown(
                    sides.menu(), value=sides.chosen, multiselect=True, label="Adapters"
                )
                base = gr.Label(label="Base", num_top_classes=3, elem_id="base")
                adapted = gr.Label(label="Adapted", num_top_classes=3, elem_id="adapted")
        pad.change(draw, [pad], [image, note])  # input would bring the drawing before the last one
        in_turn: Any = {"concurrency_id": "network", "concurrency_limit": 1}
        button.click(mistake, [number, menu], [number, image, note], **in_turn)
        menu.change(slider, [menu], [scale], **in_turn)
        changes, outputs = [image.change, scale.change, menu.change], [base, adapted, seen]
        gr.on(changes, ask, [image, menu, scale], outputs, show_progress="hidden", **in_turn)
    return page


def demo(cfg: DictConfig, run: Run | None = None) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used, or the extra
            ``demo`` is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else the import would report itself
    require_extra("demo.py", "demo", "gradio")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own page
    sides = SideBySide(cfg, run)
    sides.network(sides.chosen, 1.0)
    host, port = cfg.server.host, cfg.server.port
    page = build_page(sides)
    try:
        page.launch(server_name=host, server_port=port, share=False, show_error=True)
    except (OSError, TypeError, OverflowError) as error:  # the last two: of the port
        raise UserError(
            f"server.host={host} server.port={port}: expected an address of this machine and a "
            f"free port, or null ({one_line(error)})"
        ) from error
