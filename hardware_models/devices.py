"""Devices by name: shipped profiles, profile files, registered cost models, and the accounting of papers."""

from __future__ import annotations

from pathlib import Path

from ddq_search.cost import CostModel
from ddq_search.errors import CostError
from hardware_models import plugin
from hardware_models.exact_widths import PAPERS
from hardware_models.model import cost_model
from hardware_models.profile import list_profiles


def find_device(name_or_path: str | Path, threads: int = 1) -> CostModel:
    """Returns the cost model of a shipped profile, of a profile file, or of an entry point.

    A shipped profile wins over a registered model of the same name.

    Raises:
        CostError: unknown device, a broken profile or cost model, or a number of threads without a speed-up.
    """
    name, installed = str(name_or_path), plugin.registered()
    if name in PAPERS:
        return PAPERS[name]()
    if name in installed and name not in list_profiles():
        if threads != 1:
            raise CostError(
                f"{name!r} is a registered cost model: it states its own threads; leave device.threads at 1"
            )
        return plugin.load(installed[name])
    return cost_model(name_or_path, threads)
