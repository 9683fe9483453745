"""Networks that people have."""

from typing import Any

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
