"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

import logging
import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from lora_mnist.classifier.choose_point import apply_point
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.config.keys import resolve_configuration
from lora_mnist.config.make import load_from_config, read_point
from lora_mnist.config.run import Run
from lora_mnist.data import MNIST, Images
from lora_mnist.data.images import viewable
from lora_mnist.errors import PictureError, one_line, require_extra
from lora_mnist.lora.model import lora_point
from lora_mnist.lora.point import BASE, Point
from lora_mnist.lora.weight import find_offset, point_fields
from lora_mnist.show.reasons import log_choices

log = logging.getLogger(__name__)

_EXPLANATION = """
Give the page a picture, or ask for a test image that the base gets wrong: both networks classify
it. The base is the pretrained network, and the adapted network is the same one with a small LoRA
adapter on top. One slider scales LoRA: at 0 it is off, at 1 it acts as it was trained. Where the
adapter has an offset, a number on the logit of the class that is repaired, or the tau of several, a
second slider sets it: a scale of 0 leaves it on. With both at 0 the two networks are the same. The
page opens with the scale and the offset that the adapter has.
"""


def predict_both(classifier: Classifier, image: Tensor, point: Point) -> list[dict[str, float]]:
    """Return the probability of each class, by name, from the base and from the adapted network."""
    ((_, predictions),) = classifier.predict_at([(image, 0)], [BASE, point])
    return [dict(zip(classifier.classes, p.probabilities, strict=True)) for p in predictions]


def find_wrong_images(
    classifier: Classifier, images: Images, shown: int = -1
) -> Iterator[tuple[str, Tensor, int]]:
    """Yield caption, image and number of each that the base gets wrong; ``shown`` comes last."""
    for step in range(1, len(images) + 1):
        number = (shown + step) % len(images)
        ((image,), (label,)) = images.take([number])
        ((_, (prediction,)),) = classifier.predict_at([(image, 0)], [BASE])
        name = classifier.classes[int(label)]
        if prediction.label != name:
            yield f"Test image {images.names[number]}, labeled {name}", image, number


def build_page(classifier: Classifier) -> Any:
    """Build the page, a ``gradio.Blocks``, to draw digits on or upload other pictures."""
    import gradio as gr
    from torchvision.transforms.functional import to_pil_image

    dataset, start = classifier.dataset, lora_point(classifier.net)
    offset_adapter = find_offset(classifier.net)
    images = classifier.test_images()

    def read(picture: Any) -> tuple[Tensor | None, str]:
        path = picture["composite"] if isinstance(picture, dict) else picture
        if path is None:
            return None, ""
        try:
            return classifier.read(path), ""
        except PictureError as error:
            return None, f"This picture cannot be used: {one_line(error)}."

    def wrong_image(shown: int) -> tuple[str, Tensor | None, int]:
        wrong = iter(()) if images is None else find_wrong_images(classifier, images, shown)
        return next(wrong, ("There is no test image that the base gets wrong.", None, shown))

    def classify(image: Tensor | None, scale: float, offset: float) -> tuple[Any, Any, Any]:
        if image is None:
            return None, None, None
        base, adapted = predict_both(classifier, image, start._replace(scale=scale, offset=offset))
        return base, adapted, to_pil_image(viewable(image))

    with gr.Blocks(title="LoRA-MNIST", analytics_enabled=False) as page:
        gr.Markdown(_EXPLANATION)
        image, shown = gr.State(), gr.State(-1)  # per visitor: the last test image that was shown
        with gr.Row():
            with gr.Column():
                if isinstance(dataset, MNIST) and dataset.dataset == "MNIST":
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
                scale = gr.Slider(
                    min(0, start.scale),
                    max(2, start.scale),
                    start.scale,
                    step=0.05,
                    label="Scale of the adapter",
                    visible="scale" in point_fields(classifier.net),  # an offset alone has none
                    elem_id="scale",
                )
                label, reach = "Offset on the repaired class", 10
                if offset_adapter is not None and not offset_adapter.moves_one_class:
                    label, reach = "Tau of the offset on the repaired classes", 3
                most_offset = max(reach, abs(start.offset))
                offset = gr.Slider(
                    -most_offset,
                    most_offset,
                    start.offset,
                    step=0.05,
                    label=label,
                    visible=offset_adapter is not None,
                    elem_id="offset",
                )
                base = gr.Label(label="Base", num_top_classes=3, elem_id="base")
                adapted = gr.Label(label="Adapted", num_top_classes=3, elem_id="adapted")
        in_turn: Any = {"concurrency_id": "network", "concurrency_limit": 1}
        # Not the event input, which would send the previous drawing.
        picture.change(read, [picture], [image, note])
        button.click(wrong_image, [shown], [note, image, shown], **in_turn)
        changes, outputs = [image.change, scale.change, offset.change], [base, adapted, seen]
        gr.on(changes, classify, [image, scale, offset], outputs, show_progress="hidden", **in_turn)
    return page


def demo(cfg: DictConfig, run: Run | None = None) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        UserError: if a value of ``cfg``, or a file that it names, cannot be used, or the extra
            ``demo`` is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else the import would report itself
    require_extra("demo.py", "demo", "gradio")
    log.info("loading the network and its test images")
    cfg = resolve_configuration(cfg, run)
    classifier = load_from_config(cfg)
    classifier.check_network()
    log_choices(apply_point(classifier, read_point(cfg)))
    build_page(classifier).launch(share=False, show_error=True)
