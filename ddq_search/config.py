"""The configuration of a run: one TOML, validated; unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ddq_search.budget import Wish, parse
from ddq_search.cost import BIT_OPERATIONS, ENERGY, FLASH, LATENCY, PEAK_RAM
from ddq_search.errors import ConfigError
from ddq_search.method_names import Baseline, Method
from ddq_search.precision import FLOAT_BITS, MAX_BITS

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = float | str

_NO_PART: dict[str, Any] = {"out": True, "training": {"device", "compile", "workers"}, "search": {"baselines"}}
"""What changes no checkpoint of a run: where it is computed and kept, and what it is compared with afterwards."""

_YOUNGER: dict[str, dict[str, Any]] = {
    "training": {"optimizer": "sgd", "finetune_shares": "by-need"},
    "search": {"gates": "sampled", "constraint": "lagrangian", "coldest": None},
}
"""Keys by section that older versions did not know, and their defaults."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """Which model, and where its weights come from."""

    name: str = "resnet8"
    weights: str | None = None


class DataConfig(_Section):
    """Which data. ``limit`` keeps that many training images."""

    name: str = "digits"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    limit: Positive | None = None


class DeviceConfig(_Section):
    """Which device: a shipped profile's name, the path of a TOML file, or a registered cost model; its threads."""

    profile: str = "cortex-a53-rpi3-lowbit-neon"
    threads: Positive = 1


class BudgetConfig(_Section):
    """Budgets: ``"80%"`` of uniform 8 bit, or numbers in ms, KiB, Gbop and uJ. Absent means no budget."""

    latency: Amount | None = None
    flash: Amount | None = None
    peak_ram: Amount | None = None
    bit_operations: Amount | None = None
    energy: Amount | None = None

    def wishes(self) -> list[Wish]:
        """Returns the budgets that are set."""
        given = {
            LATENCY: self.latency, FLASH: self.flash, PEAK_RAM: self.peak_ram,
            BIT_OPERATIONS: self.bit_operations, ENERGY: self.energy,
        }  # fmt: skip
        return [parse(cost, text) for cost, text in given.items() if text is not None]


class SpaceConfig(_Section):
    """Candidate bitwidths, and pins by name pattern (``"conv1" = 8``, ``"weights/layer*" = [4, 8]``)."""

    weight_bits: tuple[int, ...] = (2, 4, 8)
    activation_bits: tuple[int, ...] = (2, 4, 8)
    pins: dict[str, int | list[int]] = Field(default_factory=dict)

    @field_validator("weight_bits", "activation_bits")
    @classmethod
    def _known(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [b for b in bits if b != FLOAT_BITS and not 2 <= b <= MAX_BITS]
        if wrong or not bits:
            raise ValueError(f"bitwidths must be 2 to {MAX_BITS}")
        return tuple(sorted(set(bits)))


class TrainingConfig(_Section):
    """Epochs, learning rates and what else training needs.

    ``float_epochs = 0`` starts from the given weights as they are. ``optimizer`` trains the network's own weights:
    ``sgd`` has Nesterov's momentum. ``finetune_epochs`` are a point's on average: ``by-need`` gives more to points that
    the supernet serves worse (`ddq_search.finetune_shares`). ``accumulate`` batches share an optimizer step.
    ``ema_decay`` > 0 lets the float model, the baseline and every fine-tuned policy end as the moving average of their
    weights. ``distillation`` is the share of the loss that is the distance to the float model's output, estimated on
    ``distilled_share`` of each batch (on all of it where there is no other loss).
    ``workers`` processes train the points of a front at the same time (`ddq_search.point_workers`) and divide the
    ``threads`` of the run among them. ``device`` is the processor that trains (``cpu``, ``cuda``, ``cuda:1``, ``mps``),
    ``precision`` the number format of the network's products, ``compile`` whether training and the gated search run
    through ``torch.compile``.
    """

    float_epochs: Annotated[int, Field(ge=0)] = 30
    joint_epochs: Positive = 40
    finetune_epochs: Annotated[int, Field(ge=0)] = 2
    finetune_shares: Literal["by-need", "equal"] = "by-need"
    batch_size: Positive = 64
    optimizer: Literal["sgd", "adam"] = "sgd"
    float_rate: Rate = 0.1
    joint_rate: Rate = 0.03
    finetune_rate: Rate = 0.005
    step_rate: Rate = 0.01
    gate_rate: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.8
    distilled_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    memory_layout: Literal["contiguous", "channels_last"] = "channels_last"
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    gradient_clip: Rate = 5.0
    accumulate: Positive = 1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    calibration_batches: Positive = 4
    norm_batches: Positive = 40
    threads: Positive | None = None
    workers: Positive = 1
    device: str = "cpu"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    compile: bool = False

    @field_validator("device")
    @classmethod
    def _processor(cls, device: str) -> str:
        if not re.fullmatch(r"cpu|mps|cuda(:(0|[1-9][0-9]?))?", device):
            raise ValueError("expected cpu, cuda, cuda:0, cuda:1, … or mps")
        return device


class SearchConfig(_Section):
    """Which method searches, how it spreads its points, and how gradients are estimated.

    ``weight_quantizers`` and ``activation_quantizers`` name quantizer families; the method's own where empty.

    When fewer than ``front_points`` of the points within the budgets end on the front, up to ``extra_points`` more
    policies are fine-tuned in its gaps. ``baselines`` are further ways of choosing policies that the search is compared
    with at equal training; ``evaluations`` is how many policies ``nsga2`` and ``random-search`` look at untrained,
    ``hessian_vectors`` how many random vectors ``hawq-ilp`` takes per batch and tensor.

    ``mode = "supernet"`` first trains one network for every candidate, whatever the budgets, and then gates alone.
    ``mode = "ptq"`` trains no weights and needs no labels: gates and quantizer steps follow the distance to the float
    model's output on ``ptq_images`` calibration images. ``solve_steps`` are the gate steps where weights stay as they
    are.

    ``gates = "thresholded"`` computes the policy of the thresholded gates in every step instead of a sampled one.
    ``constraint`` is how budgets enter the loss: ``lagrangian``, with ``penalty`` ρ and ``multiplier_rate`` η;
    ``squared-hinge`` and ``squared-gap``, one- and two-sided, with ``penalty`` λ and costs in KiB, ms, Gbop and uJ.
    ``coldest`` is the temperature, 1 at first, at which the joint training's end draws policies (``ddq``, 0.2), or at
    which the softmax of ``edmips`` (1) and ``dqss`` (0.02) ends.
    """

    method: Method = "ddq"
    mode: Literal["joint", "supernet", "ptq"] = "joint"
    weight_quantizers: tuple[str, ...] = ()
    activation_quantizers: tuple[str, ...] = ()
    points: Positive = 16
    front_points: Positive = 8
    extra_points: Annotated[int, Field(ge=0)] = 16
    relaxed_points: Annotated[int, Field(ge=0)] = 4
    uniform: tuple[tuple[int, int], ...] = ((8, 8), (4, 8), (4, 4), (2, 8), (2, 2))
    baselines: tuple[Baseline, ...] = ()
    evaluations: Positive = 200
    hessian_vectors: Positive = 4
    gradient_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    gate_start: Annotated[float, Field(gt=-1, lt=1)] = 0.6
    gates: Literal["sampled", "thresholded"] = "sampled"
    coldest: Annotated[float, Field(gt=0, le=1)] | None = None
    solve_steps: Positive = 100
    ptq_images: Annotated[int, Field(gt=0, le=1024)] = 512
    constraint: Literal["lagrangian", "squared-hinge", "squared-gap"] = "lagrangian"
    penalty: Rate = 1.0
    multiplier_rate: Rate = 0.05

    @model_validator(mode="after")
    def _together(self) -> Self:
        chooses = self.method in get_args(Baseline)
        if self.mode == "ptq" and (chooses or self.baselines):
            what = f"method {self.method!r} trains" if chooses else "baselines train"
            raise ValueError(f"{what} weights, mode 'ptq' does not; leave one of them out")
        if self.mode == "supernet" and self.method != "ddq":
            raise ValueError(f"mode 'supernet' belongs to method 'ddq', not to {self.method!r}")
        if self.gates != "sampled" and self.method != "ddq":
            raise ValueError(f"gates belong to method 'ddq', not to {self.method!r}; leave 'gates' out")
        if self.coldest is not None and self.method not in ("ddq", "edmips", "dqss"):
            methods = "'ddq', 'edmips' and 'dqss'"
            raise ValueError(f"a temperature belongs to {methods}, not to {self.method!r}; leave 'coldest' out")
        if self.coldest is not None and self.method == "ddq" and (self.mode != "joint" or self.gates != "sampled"):
            raise ValueError("only sampled gates of mode 'joint' are drawn at a temperature; leave 'coldest' out")
        if self.constraint != "lagrangian" and chooses:
            raise ValueError(f"method {self.method!r} has no penalty; leave 'constraint' out")
        return self


class QuantizerConfig(_Section):
    """Options of quantizer families; one that is absent is what the family says.

    Which family has which, and why the defaults are what they are: docs/methods-ddq.md, docs/methods-dq.md and
    docs/methods-quantizers.md. An option that none of the search's families has is refused.
    """

    gate_gradient: Literal["neighbours", "through_z", "constant_z"] | None = None
    nearest: Literal["merged", "raw"] | None = None
    window: Literal["levels", "half_step", "everywhere"] | None = None
    shared_scale: bool | None = None
    scale_gradient: Literal["levels", "step"] | None = None
    mirrored: bool | None = None
    correction: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    power_of_two_steps: bool | None = None
    clips_gradients: bool | None = None
    further_points: Annotated[int, Field(ge=1, le=2)] | None = None

    def given(self) -> dict[str, bool | float | str]:
        """Returns the options that are set."""
        return self.model_dump(exclude_none=True)


class RunConfig(_Section):
    """Everything that decides a run's result, and where it goes."""

    seed: Seed = 0
    out: str = "runs/first"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    device: DeviceConfig = DeviceConfig()
    budgets: BudgetConfig = BudgetConfig()
    space: SpaceConfig = SpaceConfig()
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    quantizers: QuantizerConfig = QuantizerConfig()

    @model_validator(mode="after")
    def _scaled(self) -> Self:
        if self.training.precision == "fp16" and self.quantizers.correction:
            raise ValueError(
                "quantizers.correction adds to gradients, training.precision = 'fp16' scales them; take bf16 or float32"
            )
        return self

    def asked(self) -> dict[str, Any]:
        """Returns what decides a run's result: not the output path, where training is computed, or the baselines.

        Keys that older versions did not know are left out at their defaults, so that runs of those versions go on.
        """
        document = self.model_dump(mode="json", exclude=_NO_PART)
        for section, keys in _YOUNGER.items():
            for key, default in keys.items():
                if document[section][key] == default:
                    del document[section][key]
        if not self.quantizers.given():
            del document["quantizers"]
        return document

    def fingerprint(self, *more: str) -> str:
        """Returns a hash of what is `asked` for."""
        document = json.dumps([self.asked(), more], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:32]

    def to_toml(self) -> str:
        """Returns the resolved configuration as TOML."""
        return tomlkit.dumps(_without_none(self.model_dump(mode="json")))


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Returns the configuration in a file with dotted overrides (``"training.batch_size": 32``) on top.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is out of range.
    """
    document: dict[str, Any] = {}
    if path is not None:
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    for key, value in overrides.items():
        *sections, last = key.split(".", 2) if not key.startswith("space.pins.") else ["space", "pins", key[11:]]
        table = document
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{section!r} must be a table in {path}")
        table[last] = value
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, path)) from error
    config.budgets.wishes()
    return config


def _first_problem(error: ValidationError, path: Path | None) -> str:
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    where = f" in {path}" if path else ""
    if problem["type"] == "extra_forbidden":
        known = RunConfig.model_fields
        section = known.get(str(problem["loc"][0]))
        fields = getattr(section.annotation, "model_fields", known) if section and len(problem["loc"]) > 1 else known
        return f"unknown configuration key {key!r}{where}; known here: {', '.join(fields)}"
    return f"configuration key {key!r}{where}: {said(problem)}" if key else said(problem) + where


def said(problem: Mapping[str, Any]) -> str:
    """Returns what a validation error of the configuration says, with the value unless that is a whole section."""
    text, value = str(problem["msg"]).removeprefix("Value error, "), problem["input"]
    if problem["type"] == "tuple_type":
        text = f"expected a list{_names_in_list(problem['loc'])}"
    return text if isinstance(value, Mapping) else f"{text}, got {value!r}"


def _names_in_list(place: tuple[int | str, ...]) -> str:
    """Returns the names that a list at this place of the configuration takes, where it takes names."""
    annotation: Any = RunConfig
    for part in place:
        fields = getattr(annotation, "model_fields", {})
        annotation = fields[part].annotation if part in fields else None
    (element, *_) = get_args(annotation) or (None,)
    return f" of {', '.join(map(str, get_args(element)))}" if get_origin(element) is Literal else ""


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value
