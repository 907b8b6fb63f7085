"""Writes the layer tables of published networks into ``hardware_models/measurements/networks/``.

``python benchmarks/extract_networks.py`` writes them all. Architectures are written from their papers, in the variant
that the measured runtime executes (``SAME`` padding of TensorFlow, 1001 classes, batch norm and ReLU folded).
"""

from __future__ import annotations

import csv
from pathlib import Path

from architectures.classic import alexnet, densenet_121, resnet, resnet_v2_101, squeezenet, vgg16
from architectures.detection import mobilenet_ssd, squeezenet_ssd
from architectures.inception import inception_v1, inception_v2, inception_v3, inception_v4
from architectures.mobile import efficientnet_lite, mnasnet, mobilenet_v1, mobilenet_v2, mobilenet_v3
from architectures.table import COLUMNS, Table
from architectures.tiny import tiny_ad, tiny_ic, tiny_kws, tiny_vww

FOLDER = Path(__file__).parents[1] / "hardware_models" / "measurements" / "networks"


def networks() -> dict[str, Table]:
    """Returns every table by file stem."""
    result: dict[str, Table] = {}
    for width in (0.25, 0.5, 0.75, 1.0):
        for size in (128, 160, 192, 224):
            result[f"mobilenet_v1-{width:.2f}-{size}"] = mobilenet_v1(width, size)
    for width, sizes in (
        (0.35, (96, 128, 160, 192, 224)), (0.5, (96, 128, 160, 192, 224)), (0.75, (96, 128, 160, 192, 224)),
        (1.0, (96, 128, 160, 192, 224)), (1.3, (224,)), (1.4, (224,)),
    ):  # fmt: skip
        for size in sizes:
            result[f"mobilenet_v2-{width:.2f}-{size}"] = mobilenet_v2(width, size)
    for width, size in ((0.5, 224), (0.75, 224), (1.0, 96), (1.0, 128), (1.0, 160), (1.0, 192), (1.0, 224), (1.3, 224)):
        result[f"mnasnet_b1-{width:.2f}-{size}"] = mnasnet(width, size)
    lite = [(1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300)]
    return result | {
        "mobilenet_v3-large": mobilenet_v3(True),
        "mobilenet_v3-small": mobilenet_v3(False),
        "mobilenet_v3-small-0.75": mobilenet_v3(False, 0.75),
        "mobilenet_v3-large-minimalistic": mobilenet_v3(True, minimalistic=True),
        "mobilenet_v3-small-minimalistic": mobilenet_v3(False, minimalistic=True),
        **{f"efficientnet_lite{index}": efficientnet_lite(*entry) for index, entry in enumerate(lite)},
        "inception_v1": inception_v1(),
        "inception_v2": inception_v2(),
        "inception_v3": inception_v3(),
        "inception_v4": inception_v4(),
        "densenet_121": densenet_121(),
        "squeezenet_1.0-224": squeezenet("1.0", 224),
        "squeezenet_1.1-227": squeezenet("1.1", 227, 1000),
        "resnet_v2_101": resnet_v2_101(),
        "resnet18": resnet((2, 2, 2, 2), bottleneck=False),
        "resnet50": resnet((3, 4, 6, 3), bottleneck=True),
        "googlenet": inception_v1(caffe=True),
        "vgg16": vgg16(),
        "alexnet": alexnet(),
        "mobilenet_ssd": mobilenet_ssd(),
        "squeezenet_ssd": squeezenet_ssd(),
        "tiny_ic": tiny_ic(),
        "tiny_kws": tiny_kws(),
        "tiny_vww": tiny_vww(),
        "tiny_ad": tiny_ad(),
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, table in networks().items():
        with (FOLDER / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(table.rows)
        print(f"{name}: {len(table.rows)} rows, {sum(int(row[-1]) for row in table.rows) / 1e6:.1f} M products")


if __name__ == "__main__":
    main()
