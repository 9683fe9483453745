"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lora_mnist.command import Run, checked_copy, classifier_of
from lora_mnist.data import MNIST, Images
from lora_mnist.data.images import viewable
from lora_mnist.errors import UserError, config_group, one_line, require_extra
from lora_mnist.lora.peft import CONFIG_NAME, read_metadata
from lora_mnist.repair.predictions import columns_at

log = logging.getLogger(__name__)

_EXPLANATION = """
Give the page a picture, or ask for a test image that the base gets wrong: both networks say which
class it shows. The base is the pretrained network, and the adapted network is the same one with a
small LoRA adapter on top. The slider scales the adapter: at 0 both are the base, at 1 it acts as it
was trained. The page opens with the scale at which the adapter was saved.
"""


class SideBySide:
    """A base and an adapter on it, asked about one image at a time.

    The adapter is that of ``cfg.adapter``, or else the newest; with a network, images or a base
    typed, the newest on that base, if there is any.

    Attributes:
        classifier: the network, with its adapter on it.
        scale: with which the adapter was saved; 0 where there is none.
        test_set: the test images; ``None`` where they are not here.
        mistakes: what to say of each of these that the base gets wrong, and the image, in a circle.
    """

    def __init__(self, cfg: DictConfig, run: Run | None = None) -> None:
        cfg = checked_copy(cfg, run)
        outputs = Path(cfg.paths.outputs)
        typed = {key.partition(".")[0] for key in run.typed_keys} if run else set()
        names_a_base = bool(typed & {"classifier", "net", "data", "base_ckpt"})
        if cfg.adapter is None and not names_a_base and any(outputs.glob("lora/*/adapter")):
            cfg.adapter = "latest"
        classifier = classifier_of(cfg, run)
        assert classifier.base is not None
        if cfg.adapter is None and (newest := newest_on(outputs, classifier.base.sha256)):
            cfg.adapter = str(newest)
            classifier = classifier_of(cfg, run)
        classifier.check()
        self.classifier, self.scale = classifier, classifier.set_scale(None)
        self.test_set: Images | None = None
        try:
            with config_group("data"):
                self.test_set = classifier.dataset.sets.test
        except UserError as error:
            log.info("no test images here (%s)", error)
        self.mistakes = self._mistakes()

    def ask(self, image: Tensor, scale: float) -> list[dict[str, float]]:
        """The probability of each class by its name: of the base, and of the adapted network.

        ``image`` is uint8, of the shape (channels, height, width) of the data's.
        """
        ((_, predictions),) = self.classifier.predictions_at([(image, 0)], [0, scale])
        classes = self.classifier.classes
        return [dict(zip(classes, each.probabilities, strict=True)) for each in predictions]

    def _mistakes(self) -> Iterator[tuple[str, Tensor]]:
        images, dataset = self.test_set, self.classifier.dataset
        if images is None:
            return
        wrong = True
        while wrong:
            wrong = False
            for indices in torch.split(torch.arange(len(images)), dataset.eval_batch_size):
                batches = dataset.batches(images, indices=indices)
                columns = columns_at(self.classifier.net, batches, [0])
                for place in (columns.prediction[0] != columns.label).nonzero().flatten():
                    wrong, number = True, int(indices[place])
                    label = dataset.classes[int(columns.label[place])]
                    note = f"Test image {number}, labelled {label}"
                    yield note, images.take([number])[0][0]


def newest_on(outputs: Path, base_sha256: str) -> Path | None:
    """The newest adapter in ``outputs`` that was made for a base."""
    for file in sorted(outputs.rglob(CONFIG_NAME), key=os.path.getmtime, reverse=True):
        try:
            if read_metadata(file.parent).get("base_sha256") == base_sha256:
                return file.parent
        except ValueError as error:
            log.warning("left out: %s", one_line(error))
    return None


def build_page(sides: SideBySide) -> Any:
    """The page, a ``gradio.Blocks``, to draw digits on, and to upload pictures of other things."""
    import gradio as gr
    from torchvision.transforms.functional import to_pil_image

    dataset = sides.classifier.dataset

    def read(picture: Any) -> tuple[Tensor | None, str]:
        path = picture["composite"] if isinstance(picture, dict) else picture
        if path is None:
            return None, ""
        try:
            return dataset.read_picture(Path(path)), ""
        except ValueError as error:
            return None, f"This picture cannot be used: {one_line(error)}."

    def mistake() -> tuple[str, Tensor | None]:
        return next(sides.mistakes, ("There is no test image that the base gets wrong.", None))

    def ask(image: Tensor | None, scale: float) -> tuple[Any, Any, Any]:
        if image is None:
            return None, None, None
        base, adapted = sides.ask(image, scale)
        return base, adapted, to_pil_image(viewable(image))

    with gr.Blocks(title="LoRA-MNIST", analytics_enabled=False) as page:
        gr.Markdown(_EXPLANATION)
        image = gr.State()
        with gr.Row():
            with gr.Column():
                if isinstance(dataset, MNIST) and dataset.dataset != "FashionMNIST":
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
                label, most = "Scale of the adapter", max(2, sides.scale)
                scale = gr.Slider(0, most, sides.scale, step=0.05, label=label, elem_id="scale")
                base = gr.Label(label="Base", num_top_classes=3, elem_id="base")
                adapted = gr.Label(label="Adapted", num_top_classes=3, elem_id="adapted")
        in_turn: Any = {"concurrency_id": "network", "concurrency_limit": 1}
        # Not the event input, which would send the previous drawing.
        picture.change(read, [picture], [image, note])
        button.click(mistake, outputs=[note, image], **in_turn)
        changes, outputs = [image.change, scale.change], [base, adapted, seen]
        gr.on(changes, ask, [image, scale], outputs, show_progress="hidden", **in_turn)
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
    page, server = build_page(SideBySide(cfg, run)), cfg.server
    try:
        page.launch(server_name=server.host, server_port=server.port, share=False, show_error=True)
    except OSError as error:
        raise UserError(
            f"server.port={server.port}: expected a free port, or null ({one_line(error)})"
        ) from error
