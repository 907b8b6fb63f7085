"""The study behind the outer loop: its plan, its storage, its sampler and pruner by name.

A sampler is made anew for every proposal, with a seed that follows from the base seed and the proposal's place among
all: a resumed study goes on as it would have, and workers that ask at the same time never propose the same.
"""

from __future__ import annotations

import inspect
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url

from ddq_search.compute import trainable_compute
from ddq_search.config import RunConfig, load_config
from ddq_search.cost import FLASH, LATENCY
from ddq_search.errors import ConfigError, RunError
from ddq_search.record import write_atomically
from ddq_search.tune_queue import Requeue, origin, retried
from ddq_search.tune_space import TuneSpace, applied, default_space

GRACE = 4
"""Heartbeats that a worker may miss before it is taken for dead."""
_Direction = Literal["minimize", "maximize"]
_OBJECTIVES: dict[str, tuple[list[_Direction], list[str]]] = {
    "multi": (["maximize", "minimize", "minimize"], ["validation score", LATENCY, FLASH]),
    "scalar": (["minimize"], ["validation loss"]),
}

_CONFIG, _ASKED = "study.toml", "study.json"
"""Files of a study's directory: its configuration, and its objective and space."""
_REMEDIES = {
    True: "the file's folder must exist and be writable",
    False: "start the database, or correct the URL: postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE",
}
"""What to do where a storage does not open, by whether it is a file."""


@dataclass(frozen=True)
class StudyPlan:
    """What a study is asked for.

    Attributes:
        trials: trials wanted in the end, those that were stopped early included.
        objective: ``multi`` (validation score, latency and flash of the best policy) or ``scalar`` (its validation
            loss; it is within every budget).
        sampler: name of an Optuna sampler, such as ``tpe``, ``nsga2``, ``random``, ``gp``.
        pruner: name of an Optuna pruner, such as ``median``, ``hyperband``; scalar studies only.
        space: what is varied; the default space when None.
        storage: Optuna storage URL; SQLite in the study's directory when None.
        heartbeat_s: seconds between a worker's signs of life; one silent for four times as long is taken for dead.
        stop_hopeless: whether trials far behind are stopped in multi-objective studies.
    """

    trials: int
    objective: Literal["multi", "scalar"] = "multi"
    sampler: str = "tpe"
    pruner: str | None = None
    space: TuneSpace | None = None
    storage: str | None = None
    heartbeat_s: int = 30
    stop_hopeless: bool = True

    def varied(self, base: RunConfig) -> TuneSpace:
        """Returns the space of the study."""
        return self.space or default_space(base)


def open_study(base: RunConfig, folder: Path, plan: StudyPlan) -> optuna.Study:
    """Creates or opens the study of a directory; several processes may do so at once.

    What is refused leaves nothing in the directory, nor the directory where there was none.

    Raises:
        ConfigError: the storage cannot be opened, sampler or pruner do not exist or do not fit the study, or this
            machine has no processor as configured.
        RunError: the directory holds another study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if plan.objective not in _OBJECTIVES:
        raise ConfigError(f"unknown objective {plan.objective!r}; available: {', '.join(_OBJECTIVES)}")
    if plan.pruner is not None and plan.objective == "multi":
        raise ConfigError(
            f"--pruner {plan.pruner}: Optuna prunes single-objective studies only; add --objective scalar, or leave "
            "the pruner out: hopeless trials of a multi-objective study are stopped anyway"
        )
    trainable_compute(base.training)
    space = plan.varied(base)
    directions, names = _OBJECTIVES[plan.objective]
    sampler = EachProposal(_named("sampler", plan.sampler, _samplers(space)), base.seed)
    pruner = _named("pruner", plan.pruner or "nop", _pruners())()
    _try_out(sampler.make(base.seed), plan.sampler, directions, base, space)
    document = {"objective": plan.objective, **space.model_dump(mode="json")}
    _require_own(folder, base, document)
    if plan.storage is None:
        folder.mkdir(parents=True, exist_ok=True)
    url = plan.storage or f"sqlite:///{folder / 'tune.db'}"
    name = f"ddq-search {base.fingerprint(plan.objective, space.model_dump_json())[:12]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = _storage(url, plan.heartbeat_s)
        study = optuna.create_study(
            study_name=name, storage=storage, directions=directions, sampler=sampler, pruner=pruner,
            load_if_exists=True,
        )  # fmt: skip
        study.set_metric_names(names)
    _claim(folder, base, document)
    sampler.study = study
    return study


def shown(url: str) -> str:
    """Returns a storage URL without its password and query; only its scheme where the password cannot be told apart."""
    parsed = _parsed(url)
    if parsed is None:
        return f"{url.partition(':')[0].rpartition('@')[2]}:…"
    return parsed.set(query={}).render_as_string(hide_password=True)


def _parsed(url: str) -> URL | None:
    """Returns a storage URL in parts, or None where they cannot be told apart."""
    try:
        parsed = make_url(url)
    except Exception:  # no URL, or a port that is no number
        return None
    return None if "@" in (parsed.host or "") else parsed


def _require_own(folder: Path, base: RunConfig, document: dict[str, Any]) -> None:
    """A study's directory belongs to one configuration, objective and space."""
    config, asked = folder / _CONFIG, folder / _ASKED
    if config.exists() and load_config(config, {}).fingerprint() != base.fingerprint():
        raise RunError(f"{folder} holds a study of another configuration ({config.name}); choose another --out")
    if asked.exists() and json.loads(asked.read_text(encoding="utf-8")) != document:
        raise RunError(
            f"{folder} holds a study of another objective or search space ({asked.name}); choose another --out"
        )


def _claim(folder: Path, base: RunConfig, document: dict[str, Any]) -> None:
    """Writes whose study a directory holds."""
    contents = {_CONFIG: base.to_toml(), _ASKED: json.dumps(document, indent=1)}
    for name, text in contents.items():
        if not (folder / name).exists():
            write_atomically(folder / name, text.encode())


def _storage(url: str, heartbeat_s: int) -> optuna.storages.RDBStorage:
    """Opens a storage with heartbeats; tries again where another process is just making its tables."""
    parsed = _parsed(url)
    if parsed is None:
        raise ConfigError(
            f"--storage {shown(url)} is no URL of a database; expected sqlite:///FILE or postgresql+psycopg://USER:"
            "PASSWORD@HOST:PORT/DATABASE, '@' in a password written %40"
        )
    local = url.startswith("sqlite")
    engine: dict[str, Any] = {"connect_args": {"timeout": 120}} if local else {"pool_pre_ping": True}
    accepted = inspect.signature(optuna.storages.RDBStorage.__init__).parameters
    new = "heartbeat_stale_trial_callback"  # Optuna 4.9 on; before: failed_trial_callback
    callback: dict[str, Any] = {new if new in accepted else "failed_trial_callback": Requeue()}
    for attempt in (1, 2, 3):
        try:
            return optuna.storages.RDBStorage(
                url, engine, heartbeat_interval=heartbeat_s, grace_period=GRACE * heartbeat_s, **callback
            )
        except ImportError as error:
            remedy = "pip install 'ddq-search[postgres]'" if "psycopg" in url else "install it"
            raise ConfigError(
                f"cannot open the study in {shown(url)}: its database driver is missing; {remedy} (PostgreSQL URLs "
                "start with postgresql+psycopg://)"
            ) from error
        except Exception as error:  # SQLAlchemy and the database drivers raise their own
            if attempt == 3 or "exist" not in str(error):
                said = first_line(error)
                said = said.replace(parsed.password, "***") if parsed.password else said
                raise ConfigError(f"cannot open the study in {shown(url)}: {said}; {_REMEDIES[local]}") from error
            time.sleep(attempt)
    raise AssertionError("unreachable")


class EachProposal(optuna.samplers.BaseSampler):
    """A sampler made anew for every proposal, seeded by its place among the proposals of the study."""

    def __init__(self, make: Callable[..., optuna.samplers.BaseSampler], seed: int) -> None:
        self.study: optuna.Study | None = None
        self._make, self._seed = make, seed
        self._number = -1
        self._sampler = self.make(seed)

    def make(self, seed: int) -> optuna.samplers.BaseSampler:
        """Returns a fresh sampler of the kind."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._make(seed=seed)

    def _of(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        if trial.number != self._number and self.study is not None:
            known = self.study.get_trials(deepcopy=False)
            place = sum(other.number < origin(trial) and retried(other) is None for other in known)
            self._number, self._sampler = trial.number, self.make(self._seed + place)
        return self._sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Asks the proposal's sampler."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Asks the proposal's sampler."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Asks the proposal's sampler."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tells the proposal's sampler."""
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tells the proposal's sampler."""
        self._of(trial).after_trial(study, trial, state, values)


def _samplers(space: TuneSpace) -> dict[str, Callable[..., optuna.samplers.BaseSampler]]:
    """Returns Optuna's samplers that need nothing but a seed, by plain name; TPE samples all keys together."""
    found = _by_name(optuna.samplers, "Sampler", optuna.samplers.BaseSampler, ("seed",))

    def tpe(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=space.conditional, constant_liar=True)

    return {**found, "tpe": tpe, "nsga2": found["nsgaii"], "nsga3": found["nsgaiii"]}


def _pruners() -> dict[str, Callable[..., optuna.pruners.BasePruner]]:
    """Returns Optuna's pruners that need no argument, by plain name, and the percentile pruner at its usual 25 %."""
    found = _by_name(optuna.pruners, "Pruner", optuna.pruners.BasePruner, ())
    del found["threshold"]  # one of its bounds must be given, though each may be left out
    return {**found, "percentile": lambda: optuna.pruners.PercentilePruner(25.0)}


def _by_name(module: Any, suffix: str, base: type, given: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for name in module.__all__:
        kind = getattr(module, name)
        if not (inspect.isclass(kind) and issubclass(kind, base)) or inspect.isabstract(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        needed = {
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        if needed <= set(given) and set(given) <= {p.name for p in parameters}:
            found[name.removesuffix(suffix).lower()] = kind
    return found


def _named(kind: str, name: str, known: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Returns the one of this name: ``tpe``, ``TPESampler`` and ``tpe-sampler`` are the same."""
    plain = name.lower().replace("-", "").replace("_", "").removesuffix(kind)
    if plain not in known:
        raise ConfigError(f"unknown {kind} {name!r}; available: {', '.join(sorted(known))}")
    return known[plain]


def _try_out(
    sampler: optuna.samplers.BaseSampler, name: str, directions: list[_Direction], base: RunConfig, space: TuneSpace
) -> None:
    """Lets a sampler propose a few times, so that one that does not fit is refused before anything is trained.

    Raises:
        ConfigError: it cannot do several objectives or continuous ranges, or needs a package that is missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=directions, sampler=sampler)
        for number in range(3):
            trial = study.ask()
            try:
                applied(base, space.choose(trial))
            except (ImportError, ValueError, NotImplementedError) as error:
                raise ConfigError(f"--sampler {name} does not fit this study: {first_line(error)}") from error
            study.tell(trial, [float(number)] * len(directions))


def first_line(error: Exception) -> str:
    """Returns what an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
