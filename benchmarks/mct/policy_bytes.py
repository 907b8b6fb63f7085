"""What both sides of the comparison are measured with: bytes of a policy's weights, and the table of results.

Only the standard library, so that MCT's environment and ours compute with the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def layer_key(name: str) -> str:
    """Returns a layer's name without the marks that tools put into it: ``layer1_0_conv1_bn`` is ``layer1.0.conv1``."""
    return name.removesuffix("_bn").replace("_", ".")


def weight_bytes(sizes: Mapping[str, int], bits: Mapping[str, int]) -> float:
    """Returns Σ values · bits / 8 over layers, without bias, scales or padding.

    Args:
        sizes: layer → number of weights.
        bits: layer → bits of a weight.

    Raises:
        ValueError: the two do not name the same layers.
    """
    if sizes.keys() != bits.keys():
        raise ValueError(f"layers differ: {sorted(sizes.keys() ^ bits.keys())} are on one side only")
    return sum(sizes[layer] * bits[layer] for layer in sizes) / 8


def bits_text(sizes: Mapping[str, int], bits: Mapping[str, int]) -> str:
    """Returns the bits of all layers in the network's order, ``8 4 2 …``."""
    return " ".join(str(bits[layer]) for layer in sizes)


HEADER = (
    ("budget", "---"), ("policy", "---"), ("quantized by", "---"), ("weight bytes", "---:"), ("validation %", "---:"),
    ("Δ", "---:"), ("test %", "---:"), ("Δ", "---:"), ("CPU s", "---:"), ("bits per layer", "---"),
)  # fmt: skip


def table(document: Mapping[str, Any]) -> str:
    """Returns the comparison as a Markdown table: one row per result, Δ in points to the float model.

    Args:
        document: ``sizes`` (layer → number of weights), ``float`` (split → percent) and ``results`` with ``budget``,
            ``policy``, ``tool``, ``bits`` (layer → bits), ``validation``, ``test`` and ``cpu_seconds``.
    """
    rows = [[title for title, _ in HEADER], [rule for _, rule in HEADER]]
    rows += [_row(document["sizes"], document["float"], result) for result in document["results"]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(sizes: Mapping[str, int], floats: Mapping[str, float], result: Mapping[str, Any]) -> list[str]:
    share = 100 * weight_bytes(sizes, result["bits"]) / weight_bytes(sizes, dict.fromkeys(sizes, 8))
    cells = [result["budget"], result["policy"], result["tool"], f"{share:.1f} %"]
    for split in ("validation", "test"):
        cells += [f"{result[split]:.2f}", f"{result[split] - floats[split]:+.2f}"]
    return [*cells, f"{result['cpu_seconds']:.0f}", bits_text(sizes, result["bits"])]
