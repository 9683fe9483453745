"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

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
        self.dataset, base = self._classifier.dataset, self._classifier.base
        assert base is not None
        self._base_sha256 = base.sha256
        self.test_set: Images | None = None
        try:
            with config_group("data"):
                self.test_set = self.dataset.sets.test
        except UserError as error:
            log.info("no test images here (%s)", error)
        adapter = self._classifier.adapter
        folders = [] if adapter is None else [str(adapter)]
        for file in sorted(outputs.rglob(CONFIG_NAME), key=os.path.getmtime, reverse=True):
            try:
                if read_metadata(file.parent).get("base_sha256") == self._base_sha256:
                    folders.append(str(file.parent))
            except ValueError as error:
                log.warning("left out of the menu: %s", one_line(error))
        self.chosen = folders[0] if folders else None
        self.menu: list[tuple[str, str]] = []
        for folder in dict.fromkeys(folders):
            name = os.path.relpath(folder, outputs).removesuffix("/adapter")
            self.menu.append((name, folder))
        self.mistakes = self._mistakes()

    def turn(self, folder: str | None, scale: float) -> None:
        """Give the one network the weights ``W + scale * scaling * B @ A``, at scale 0 the base.

        The adapter is that in ``folder``; ``None``: the base alone.
        """
        classifier, wanted = self._classifier, None if folder is None else Path(folder)
        if classifier.adapter is not None and classifier.adapter != wanted:
            remove_lora(classifier.net)
            classifier.adapter = None
        if wanted is None:
            return
        if classifier.adapter is None:
            sha256 = self._base_sha256
            load_adapter(classifier.net, wanted, self._allow_other_base, base_sha256=sha256)
            classifier.adapter = wanted
        set_lora_scale(classifier.net, scale)

    def ask(self, image: Tensor, folder: str | None, scale: float = 1.0) -> list[dict[str, float]]:
        """The probability of each class by its name: of the base, and of the adapted network.

        ``image`` is uint8, of the shape (channels, height, width) of the data's.
        """
        answers = []
        for factor in (0.0, scale):
            self.turn(folder, factor)
            (row,) = self._classifier.probabilities(self.dataset.normalise(image[None]))
            answers.append(dict(zip(self.dataset.classes, row.tolist(), strict=True)))
        return answers

    def _mistakes(self) -> Iterator[tuple[str, Tensor]]:
        """What to say of each test image that the base gets wrong, and the image, in a circle."""
        count = 0 if self.test_set is None else len(self.test_set)
        is_wrong = torch.ones(count, dtype=torch.bool)
        while self.test_set is not None and is_wrong.any():
            for indices in torch.split(torch.arange(count), self.dataset.eval_batch_size):
                images, labels = self.test_set.take(indices.tolist())
                self.turn(None, 0.0)
                batch = self.dataset.normalise(images)
                wrong = self._classifier.probabilities(batch).argmax(dim=1) != labels
                is_wrong[indices] = wrong
                for place in wrong.nonzero().flatten().tolist():
                    label = self.dataset.classes[int(labels[place])]
                    yield f"Test image {indices[place]}, labelled {label}", images[place]


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

    def mistake() -> tuple[str, Tensor | None]:
        return next(sides.mistakes, ("There is no test image that the base gets wrong.", None))

    def ask(image: Tensor | None, folder: str | None, scale: float) -> tuple[Any, Any, Any]:
        if image is None:
            return None, None, None
        base, adapted = sides.ask(image, folder, scale)
        return base, adapted, to_pil_image(viewable(image))

    with gr.Blocks(title="LoRA-MNIST", analytics_enabled=False) as page:
        gr.Markdown(_EXPLANATION)
        image = gr.State()
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
        button.click(mistake, outputs=[note, image], **in_turn)
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
    sides.turn(sides.chosen, 1.0)  # an adapter that does not fit is told before the page opens
    page, server = build_page(sides), cfg.server
    try:
        page.launch(server_name=server.host, server_port=server.port, share=False, show_error=True)
    except OSError as error:
        raise UserError(
            f"server.port={server.port}: expected a free port, or null ({one_line(error)})"
        ) from error
