"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.config import (
    adapter_specs,
    build_data,
    build_net,
    load_adapters,
    load_base,
    require_fit,
    validation_dial,
    with_run,
)
from lora_mnist.data import ImageDataModule
from lora_mnist.errors import UserError, config_group, missing_extra, one_line
from lora_mnist.lora import CONFIG_NAME, is_number, lora_disabled, set_lora_scale

log = logging.getLogger(__name__)


class SideBySide:
    """A base and its adapters, asked about one image at a time; several threads may ask.

    Args:
        cfg: a configuration of ``configs/demo.yaml``; it is not changed.

    Attributes:
        data: its test images; it also brings drawings to the form of its images.
        named: the adapters of ``cfg.adapter``, by the names that :meth:`adapters` has for them.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = with_run(cfg)
        self.data: ImageDataModule = build_data(self.cfg, "test")
        self.named: dict[str, Any] = {}
        for spec in adapter_specs(self.cfg):
            self.named[self._name(spec["path"])] = {**spec, "path": str(spec["path"])}
        self._loaded: tuple[list[str], nn.Module] | None = None
        self._lock = Lock()

    def _name(self, folder: Path) -> str:
        """An adapter's folder, or its run's, as seen from outputs."""
        run = (folder.parent if folder.name == "adapter" else folder).resolve()
        outputs = Path(self.cfg.paths.outputs).resolve()
        return str(run.relative_to(outputs) if run.is_relative_to(outputs) else run)

    def adapters(self) -> dict[str, Any]:
        """How to load each adapter, by its name: those under outputs, newest first, and named."""
        files = Path(self.cfg.paths.outputs).rglob(CONFIG_NAME)
        newest_first = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
        found: dict[str, Any] = {}
        for file in newest_first:
            found[self._name(file.parent)] = {"path": str(file.parent)}
        return found | self.named

    def load(self, adapters: Sequence[str]) -> nn.Module:
        """The base that belongs to ``adapters``, with them on it, in eval mode.

        Raises:
            KeyError: if one is no adapter of :meth:`adapters`.
            UserError: if one, or the base, cannot be used.
        """
        if self._loaded and self._loaded[0] == list(adapters):
            return self._loaded[1]
        known, cfg = self.adapters(), self.cfg.copy()
        cfg.adapter, cfg.scale = [], 1
        for name in adapters:  # a visitor's browser sends the name: it is never taken for a path
            cfg.adapter.append({**known[name], "name": name})
        net = build_net(cfg)
        load_base(cfg, net)
        load_adapters(cfg, net, self.data)
        require_fit(net, self.data, self.data.test_set.__getitems__([0])[0])
        self._loaded = (list(adapters), net)
        return net

    def opening_scale(self, adapters: Sequence[str]) -> float:
        """Where the slider stands at first: ``cfg.scale``, or what validation images advise."""
        if self.cfg.scale != "auto":
            return float(self.cfg.scale)
        if not adapters:
            return 1.0
        with self._lock:
            net = self.load(adapters)
            self._turn(net, adapters, 1.0)
            with config_group("data"):
                self.data.setup("validate")
            if not len(self.data.val_set):
                return 1.0
            return float(validation_dial(self.cfg, net, self.data)["advised"])

    @torch.no_grad()
    def ask(
        self, image: Tensor, adapters: Sequence[str], scale: float = 1.0
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Ask the base, and the network with the weights ``W + scale * sum_i s_i B_i A_i``.

        Args:
            image: uint8, (channels, height, width).
            adapters: names out of :meth:`adapters`; ``s_i`` is the scaling of each.
            scale: factor of all of them; 0 gives the base, bit for bit.

        Returns:
            The probability of each class by its name: of the base, and of the adapted network.

        """
        with self._lock:
            net, batch = self.load(adapters), self.data.normalise(image[None])
            with lora_disabled(net) if adapters else nullcontext():
                base = net(batch).softmax(dim=1)[0].tolist()
            self._turn(net, adapters, scale)
            adapted = net(batch).softmax(dim=1)[0].tolist()
        names = self.data.short_names
        return dict(zip(names, base, strict=True)), dict(zip(names, adapted, strict=True))

    def _turn(self, net: nn.Module, adapters: Sequence[str], scale: float) -> None:
        for name in adapters:  # the configuration may give an adapter a scale of its own
            own = self.named.get(name, {}).get("scale", 1.0)
            set_lora_scale(net, own * scale, name)

    @torch.no_grad()
    def next_mistake(self, adapters: Sequence[str], after: int) -> int | None:
        """The number of the next test image behind ``after`` that the base gets wrong, if any."""
        count = len(self.data.test_set)
        order = torch.arange(after + 1, after + 1 + count) % count
        with self._lock:
            net = self.load(adapters)
            with lora_disabled(net) if adapters else nullcontext():
                for numbers in torch.split(order, self.data.eval_batch_size):
                    images, labels = self.data.test_set.__getitems__(numbers.tolist())
                    wrong = net(self.data.normalise(images)).argmax(dim=1) != labels
                    if wrong.any():
                        return int(numbers[wrong][0])
        return None


def build_page(sides: SideBySide, chosen: list[str]) -> Any:
    """The page, a ``gradio.Blocks``: base and network are asked whenever image or scale changes."""
    import gradio as gr

    def draw(drawing: Any) -> tuple[Tensor | None, str]:
        try:
            return sides.data.read_picture(Path(drawing["composite"])), ""
        except (ValueError, TypeError) as error:  # TypeError: there is no drawing
            return None, f"Draw with the mouse or a finger ({one_line(error)})." if drawing else ""

    def mistake(number: int, adapters: list[str]) -> tuple[int, Tensor | None, str]:
        try:
            found = sides.next_mistake(adapters, number)
        except UserError as error:
            raise gr.Error(one_line(error), print_exception=False) from error
        if found is None:
            return -1, None, "The base gets every test image right."
        images, labels = sides.data.test_set.__getitems__([found])
        label = sides.data.short_names[int(labels[0])]
        return found, images[0], f"Test image {found} is a {label}."

    def ask(image: Tensor | None, adapters: list[str], scale: float) -> tuple[Any, Any, Any]:
        if image is None:
            return None, None, None
        try:
            base, adapted = sides.ask(image, adapters, scale)
        except UserError as error:
            raise gr.Error(one_line(error), print_exception=False) from error
        return base, adapted, (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()

    def slider(adapters: list[str]) -> Any:
        label = "Scale: 0 is the base, 1 the adapter as trained"
        try:
            value = sides.opening_scale(adapters)
        except UserError as error:
            raise gr.Error(one_line(error), print_exception=False) from error
        if adapters and sides.cfg.scale == "auto":
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
                scale = slider(chosen)
                menu = gr.Dropdown(
                    list(sides.adapters()), value=chosen, multiselect=True, label="Adapters"
                )
                base = gr.Label(label="Base", num_top_classes=3, elem_id="base")
                adapted = gr.Label(label="Adapted", num_top_classes=3, elem_id="adapted")
        pad.change(draw, [pad], [image, note])  # input would bring the drawing before the last one
        button.click(mistake, [number, menu], [number, image, note])
        menu.change(slider, [menu], [scale])
        changes = [image.change, scale.change, menu.change]
        gr.on(changes, ask, [image, menu, scale], [base, adapted, seen], show_progress="hidden")
        # Adapters that were made since the page was built.
        page.load(lambda: gr.Dropdown(list(sides.adapters())), None, [menu])
    return page


def demo(cfg: DictConfig, run_folder: Path | None = None) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used, or the extra
            ``demo`` is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: it reports itself
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise missing_extra("demo.py", "demo", error) from error
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own page
    if cfg.scale != "auto" and not is_number(cfg.scale):
        raise UserError(f"scale={cfg.scale}: expected a number, 1 as trained, or auto")
    sides = SideBySide(cfg)
    chosen = list(sides.named) or list(sides.adapters())[:1]
    try:
        sides.load(chosen)
    except UserError as error:
        if sides.named:
            raise
        sides.load(chosen := [])
        log.warning("%s; the page opens with the base alone", one_line(error))
    host, port = cfg.server.host, cfg.server.port
    page = build_page(sides, chosen)
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True
        )
    except (OSError, TypeError, OverflowError) as error:  # the last two: of the port
        raise UserError(
            f"server.host={host} server.port={port}: expected an address of this machine and a "
            f"free port, or null ({one_line(error)})"
        ) from error
    log.info("page: %s (Ctrl-C ends it)", address)
    page.block_thread()
