"""Networks that people have, and which of their layers ``lora.target_modules=all`` leaves out."""

from typing import Any

from lora_mnist.classifier.networks import build_network
from lora_mnist.lora.weight import left_out_by_all

#: By name, the settings of a network for images of 64 x 64 pixels.
NETWORKS: dict[str, dict[str, Any]] = {}
for name in (
    *("resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v3_small", "densenet121"),
    *("efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "squeezenet1_1", "shufflenet_v2_x0_5"),
    *("mnasnet0_5", "swin_t", "vit_b_16"),
):
    NETWORKS[f"torchvision {name}"] = {"_target_": f"torchvision.models.{name}"}
NETWORKS["torchvision vit_b_16"]["image_size"] = 64
for name in (
    *("resnet18", "resnet50d", "wide_resnet50_2", "mobilenetv3_small_050", "convnext_atto"),
    *("nfnet_f0", "vit_tiny_patch16_224", "deit_tiny_patch16_224"),
):
    NETWORKS[f"timm {name}"] = {"_target_": "timm.create_model", "model_name": name}
    if "patch16" in name:
        NETWORKS[f"timm {name}"]["img_size"] = 64


def table() -> str:
    """The networks of which more than a hundredth of the weights is left out, in Markdown."""
    lines = ["| network | left out | the largest |", "| --- | ---: | --- |"]
    for name, settings in NETWORKS.items():
        share, names = left_out_by_all(build_network({**settings, "num_classes": 10}))
        if share >= 0.01:
            lines.append(f"| {name} | {share:.0%} | `{names[0]}` |")
    return "\n".join(lines)
