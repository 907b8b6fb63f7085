"""Quantizes the handed-over float model with Sony's MCT; runs in MCT's own environment.

    MCT_PYTHON benchmarks/mct/quantize_with_mct.py HANDOVER RESULT

HANDOVER is a folder that `compare.py` wrote: ``job.json``, ``weights.npz``, ``images.npz``. Of this repository only
`search_spaces.resnet` and `policy_bytes` are imported; they need torch and the standard library. Mixed precision as MCT
comes: post-training quantization with its default configuration, no gradient-based training of weights.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from policy_bytes import layer_key

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search_spaces.resnet import resnet8

BATCH = 250


def main():
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    import model_compression_toolkit as mct

    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    with np.load(folder / "images.npz") as content:
        images = {name: torch.from_numpy(content[name]) for name in content.files}
    results, names = [], {}
    for task in job["tasks"]:
        model = float_model(job, folder)
        began, used = time.perf_counter(), time.process_time()
        quantized = quantize(mct, job, task, model, images["calibration"], names)
        row = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}
        names = names or {layer_key(name): name for name, _ in weighted(quantized)}
        row |= {"budget": task["budget"], "policy": task["policy"]}
        row["bits"] = {layer_key(name): int(quantizer.num_bits) for name, quantizer in weighted(quantized)}
        row |= {split: top1(quantized, images[split], images[f"{split}_labels"]) for split in ("validation", "test")}
        results.append(row)
    model = float_model(job, folder)
    floats = {split: top1(model, images[split], images[f"{split}_labels"]) for split in ("validation", "test")}
    versions = {"model-compression-toolkit": mct.__version__, "torch": torch.__version__}
    target.write_text(json.dumps({"versions": versions, "float": floats, "results": results}))


def float_model(job, folder):
    """Returns the handed-over model in evaluation mode."""
    model = resnet8(job["channels"], job["classes"])
    with np.load(folder / "weights.npz") as content:
        model.load_state_dict({name: torch.from_numpy(content[name]) for name in content.files})
    return model.eval()


def quantize(mct, job, task, model, calibration, names):
    """Returns the model as MCT quantizes it: to a budget of weight bytes, to given bits, or to 8 bits.

    ``names`` are MCT's own names of the layers, needed for given bits.
    """
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(job["seed"])

    def representative():
        for batch in calibration.split(job["batch_size"]):
            yield [batch.numpy()]

    core = mct.core.CoreConfig()
    budget = None
    if "weight_bytes" in task:
        budget = mct.core.ResourceUtilization(weights_memory=task["weight_bytes"])
    if "bits" in task:
        for layer, bits in task["bits"].items():
            chosen = mct.core.common.network_editors.NodeNameFilter(names[layer])
            core.bit_width_config.set_manual_weights_bit_width(chosen, bits, "weight")
    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        model, representative, target_resource_utilization=budget, core_config=core
    )
    return quantized.eval()


def weighted(quantized):
    """Yields name and weight quantizer of every layer of a quantized model."""
    for name, module in quantized.named_modules():
        quantizers = getattr(module, "weights_quantizers", {})
        if "weight" in quantizers:
            yield name, quantizers["weight"]


@torch.no_grad()
def top1(model, images, labels):
    """Returns the share of right answers in percent."""
    device = next(model.parameters()).device
    hits = 0
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        hits += int((model(x.to(device)).argmax(1).cpu() == y).sum())
    return 100 * hits / len(labels)


if __name__ == "__main__":
    main()
