"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lora_mnist.configuration import checked_copy, classifier_of
from lora_mnist.data import MNIST, Images
from lora_mnist.data.images import viewable
from lora_mnist.errors import UserError, config_group, one_line, require_extra
from lora_mnist.lora.adapter import load_adapter
from lora_mnist.lora.merge import remove_lora
from lora_mnist.lora.model import set_lora_scale
from lora_mnist.lora.peft import CONFIG_NAME, read_metadata
from lora_mnist.run import Run

log = logging.getLogger(__name__)

_EXPLANATION = """
Give the page a picture, or ask for a test image that the base gets wrong: both networks say which
class it shows. The base is the pretrained network, and the adapted network is the same one with a
small LoRA adapter on top. The slider scales the adapter: at 0 both are the base, at 1 it acts as it
was saved.
"""


class SideBySide:
    """A base and an adapter on it, asked about one image at a time.

    Attributes:
        dataset: brings pictures to the form of the network's images.
        test_set: the test images; ``None`` where they are not here.
        chosen: the folder of the adapter that the page opens with: that of ``cfg.adapter``, or else
            the newest; with a network, images or a base typed, the newest on that base, if any.
        menu: name and folder of each adapter on this base: the chosen one first, then the newest.
    """

    def __init__(self, cfg: DictConfig, run: Run | None = None) -> None:
        cfg = checked_copy(cfg, run)
        outputs = Path(cfg.paths.outputs)
        typed = {key.partition(".")[0] for key in run.typed_keys} if run else set()
        names_a_base = bool(typed & {"classifier", "net", "data", "base_ckpt"})
        if cfg.adapter is None and not names_a_base and any(outputs.glob("lora/*/adapter")):
            cfg.adapter = "latest"
        self._classifier = classifier_of(cfg, run)
        self._classifier.check()
        self._allow_other_base = cfg.allow_other_base
        self.dataset, self._base = self._classifier.dataset, self._classifier.base
        assert self._base is not None
        adapter = self._classifier.adapter
        # The folder of the adapter that is on the network now.
        self._placed: str | None = None if adapter is None else str(adapter)
        self.test_set: Images | None = None
        try:
            with config_group("data"):
                self.test_set = self.dataset.sets.test
        except UserError as error:
            log.info("no test images here (%s)", error)
        folders = [] if self._placed is None else [self._placed]
        for file in sorted(outputs.rglob(CONFIG_NAME), key=os.path.getmtime, reverse=True):
            try:
                if read_metadata(file.parent).get("base_sha256") == self._base.sha256:
                    folders.append(str(file.parent))
            except ValueError as error:
                log.warning("left out of the menu: %s", one_line(error))
        self.chosen = folders[0] if folders else None
        self.menu: list[tuple[str, str]] = []
        for folder in dict.fromkeys(folders):
            name = os.path.relpath(folder, outputs).removesuffix("/adapter")
            self.menu.append((name, folder))

    def network(self, folder: str | None, scale: float) -> nn.Module:
        """Turn the one network to the weights ``W + scale * scaling * B @ A``; return it.

        At scale 0 it is the base, until the next call. The adapter is that in ``folder``; ``None``:
        the base alone.
        """
        net = self._classifier.net
        if self._placed is not None and folder != self._placed:
            remove_lora(net)
            self._placed = None
        if folder is not None and folder != self._placed:
            assert self._base is not None
            load_adapter(net, folder, self._allow_other_base, base_sha256=self._base.sha256)
            self._placed = folder
        if folder is not None:
            set_lora_scale(net, scale)
        return net

    @torch.no_grad()
    def ask(self, image: Tensor, folder: str | None, scale: float = 1.0) -> list[dict[str, float]]:
        """The probability of each class by its name: of the base, and of the adapted network.

        ``image`` is uint8, of the shape (channels, height, width) of the data's.
        """
        batch = self.dataset.normalise(image[None])
        answers = []
        for factor in (0.0, scale):
            probabilities = self.network(folder, factor)(batch).softmax(dim=1)[0].tolist()
            answers.append(dict(zip(self.dataset.classes, probabilities, strict=True)))
        return answers

    @torch.no_grad()
    def next_mistake(self, folder: str | None, after: int) -> int | None:
        """The number of the next test image behind ``after`` that the base gets wrong, if any."""
        if self.test_set is None:
            return None
        base, count = self.network(folder, 0.0), len(self.test_set)
        order = torch.arange(after + 1, after + 1 + count) % count
        for numbers in torch.split(order, self.dataset.eval_batch_size):
            images, labels = self.test_set.take(numbers.tolist())
            wrong = base(self.dataset.normalise(images)).argmax(dim=1) != labels
            if wrong.any():
                return int(numbers[wrong][0])
        return None


def build_page(sides: SideBySide) -> Any:
    """The page, a ``gradio.Blocks``: both networks are asked whenever image or scale changes.

    Digits are drawn; pictures of other things are uploaded.
    """
    import gradio as gr
    from torchvision.transforms.functional import to_pil_image

    def read(picture: Any) -> tuple[Tensor | None, str]:
        path = picture["composite"] if isinstance(picture, dict) else picture
        if path is None:
            return None, ""
        try:
            return sides.dataset.read_picture(Path(path)), ""
        except ValueError as error:
            return None, f"This picture cannot be used: {one_line(error)}."

    def mistake(number: int, folder: str | None) -> tuple[int, Tensor | None, str]:
        following = sides.next_mistake(folder, number)
        if sides.test_set is None:
            return -1, None, "The test images are not here."
        if following is None:
            return -1, None, "The base gets every test image right."
        images, labels = sides.test_set.take([following])
        label = sides.dataset.classes[int(labels[0])]
        return following, images[0], f"Test image {following}, labelled {label}"

    def ask(image: Tensor | None, folder: str | None, scale: float) -> tuple[Any, Any, Any]:
        if image is None:
            return None, None, None
        base, adapted = sides.ask(image, folder, scale)
        return base, adapted, to_pil_image(viewable(image))

    with gr.Blocks(title="LoRA-MNIST", analytics_enabled=False) as page:
        gr.Markdown(_EXPLANATION)
        image, number = gr.State(), gr.State(-1)
        with gr.Row():
            with gr.Column():
                if isinstance(sides.dataset, MNIST) and sides.dataset.dataset != "FashionMNIST":
                    picture: Any = gr.Sketchpad(
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
                else:
                    picture = gr.Image(type="filepath", sources=["upload"], label="Your picture")
                button = gr.Button("A test image that the base gets wrong")
                note = gr.Markdown()
                seen = gr.Image(label="As the network sees it", format="png", height=200)
            with gr.Column():
                scale = gr.Slider(0, 2, 1, step=0.05, label="Scale of the adapter", elem_id="scale")
                menu = gr.Dropdown(sides.menu, value=sides.chosen, label="Adapter")
                base = gr.Label(label="Base", num_top_classes=3, elem_id="base")
                adapted = gr.Label(label="Adapted", num_top_classes=3, elem_id="adapted")
        in_turn: Any = {"concurrency_id": "network", "concurrency_limit": 1}
        # Not the event input, which would send the previous drawing.
        picture.change(read, [picture], [image, note])
        button.click(mistake, [number, menu], [number, image, note], **in_turn)
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
    log.info("loading the network and its test images")
    sides = SideBySide(cfg, run)
    sides.network(sides.chosen, 1.0)  # an adapter that does not fit is told before the page opens
    page, server = build_page(sides), cfg.server
    try:
        page.launch(server_name=server.host, server_port=server.port, share=False, show_error=True)
    except OSError as error:
        raise UserError(
            f"server.port={server.port}: expected a free port, or null ({one_line(error)})"
        ) from error
