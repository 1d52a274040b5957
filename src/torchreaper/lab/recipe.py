"""What to run: a recipe, read from YAML, checked whole before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from torchreaper.lab import objects
from torchreaper.lab import schemes as lab_schemes
from torchreaper.lab.data import AUGMENTATIONS, NAMES, SPECS, Augmentation, BoxesSpec, DataSpec, QuestionsSpec
from torchreaper.lab.errors import UserError
from torchreaper.lab.models import ModelSpec
from torchreaper.lab.published import Published
from torchreaper.lab.recipe_text import read, with_override, with_profile
from torchreaper.lab.sections import OptimSpec, ScheduleSpec, SourceSpec, TaskName
from torchreaper.lab.settings import Settings, did_you_mean, parse, parse_nested, show

#: Images at a time when a network is judged, by task: photographs are large.
EVAL_BATCH = {"classification": 1000, "detection": 16, "vqa": 1000}
#: What stands for every scheme of a recipe in ``reaper compare --schemes``; no scheme can be called that.
ALL = "all"
# Keys that older versions did not have, and what they did: a teacher of theirs keeps its name.
_LATER = {"task": "classification", "source": None, "channels_last": False, "eval_every": 1}
_LATER_IN: dict[str, dict[str, Any]] = {
    "data": {"classes": None, "judge": "test", "label_noise": 0.0},
    "schedule": {"fall": None},
}
# Names that become folders, on Windows too: there some are devices, whatever follows a dot, and a last dot is lost.
_DEVICE = r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)"
_SAFE = re.compile(rf"(?!{_DEVICE})[a-z0-9][a-z0-9._+-]{{0,99}}(?<!\.)", re.IGNORECASE | re.ASCII)
_FOLDER = "names a folder: letters, digits, '.', '_', '+' and '-' only, no '.' at an end, no device of Windows"


class Recipe(Settings):
    """One experiment: data, network, optimizer, schedule, and the schemes to train it with.

    Attributes:
        name: names the run folder. epochs: of training. batch: training images per step.
        task: "classification" (the default), "detection" (boxes around objects) or "vqa" (questions about pictures).
        data, model, optim, schedule: see ``DataSpec``, ``ModelSpec``, ``OptimSpec``, ``ScheduleSpec``.
        augment: "none", "crop-flip", or, of images that are not in memory, "resized-crop".
        precision: as Lightning Fabric names it.
        channels_last: keep images and weights as [batch, height, width, channels] in memory, which many machines
            compute faster, most of all with ``precision: bf16-mixed``. Numbers change by rounding only, but Dropout
            between convolutions leaves out other places.
        eval_batch: images at a time when the network is judged; None: 1000, of detectors 16.
        eval_every: judge the network after each so-many-th epoch, and after the last. With few training images judging
            takes half of the time. The other epochs' accuracies are null; where the last epoch is reported, no other
            number of a run changes, and a run with another value is the same run.
        grad_clip: largest norm of the gradient; None: not clipped.
        report: the accuracy that counts: of the "last" epoch, or of the epoch that is best on "validation".
        snapshots: keep the network's weights after each so-many-th epoch and after the last, in the run's folder; see
            ``torchreaper.lab.snapshots``. None: never. It changes no number of a run, and a run with another value is
            the same run: a finished one is not repeated, one that goes on keeps what is due from there on.
        seeds: how many seeds a comparison runs (0, 1, ...).
        scheme: the recipe's own scheme and its options, all of them once checked.
        schemes: options of others to compare with, by key: ``{dsd: {...}}`` or, for a second setting of one
            scheme, ``{repr-random: {name: repr, criterion: random}}``.
        source: what the network has learnt before, see ``SourceSpec``. The schemes then train that first network.
        published: what a paper reports for these schemes, see ``Published``; printed beside what was measured, and no
            part of what makes a run the same::

                published:
                  unit: error %                 # or: accuracy %
                  source: Prakash et al. 2019, table of CIFAR networks
                  data: CIFAR-10                # optional
                  values: {standard: 27.9, repr: 23.6}

            A profile that makes the numbers meaningless takes them away by ``published: null``.
        profiles: named changes to all of the above; ``load_recipe(profile=...)`` makes them.
    """

    name: str
    task: TaskName = "classification"
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    data: DataSpec | BoxesSpec | QuestionsSpec
    model: ModelSpec
    optim: OptimSpec
    schedule: ScheduleSpec = ScheduleSpec()
    augment: Augmentation = "none"
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    channels_last: bool = False
    eval_batch: int = Field(default=None, ge=1, validate_default=True)
    eval_every: int = Field(default=1, ge=1)
    grad_clip: float | None = Field(default=None, gt=0)
    report: Literal["last", "validation"] = "last"
    snapshots: int | None = Field(default=None, ge=1)
    seeds: int = Field(default=3, ge=1)
    scheme: dict[str, Any] = Field(default_factory=lambda: {"name": "standard"})
    schemes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    source: SourceSpec | None = None
    published: Published | None = None
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)

    _base: Path = PrivateAttr(default=Path())

    @property
    def base(self) -> Path:
        """The folder that relative data paths start from: the recipe file's."""
        return self._base

    def at(self, base: Path) -> Recipe:
        """The same recipe with its relative data paths starting from ``base``."""
        copy = self.model_copy()
        copy._base = Path(base)
        return copy

    @field_validator("data", mode="before")
    @classmethod
    def _of_its_task(cls, values: Any, info: ValidationInfo) -> Any:
        """The section of the recipe's task."""
        if not isinstance(values, (Mapping, Settings)):
            raise ValueError("must be a mapping (key: value), such as {name: digits}")
        task = info.data.get("task", "")
        spec, name = SPECS.get(task), dict(values).get("name")
        others = [one for one, names in NAMES.items() if name in names]
        if spec and others and task not in others:
            raise UserError(
                f"name={name!r}: is data of the task {' or '.join(others)}, the recipe's is {task}; set task"
            )
        return parse_nested(spec, values) if spec and isinstance(values, Mapping) else values

    @field_validator("eval_batch", mode="before")
    @classmethod
    def _at_once(cls, value: Any, info: ValidationInfo) -> Any:
        return EVAL_BATCH.get(info.data.get("task", ""), 1000) if value is None else value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not names_folder(name):
            raise ValueError(_FOLDER)
        return name

    @model_validator(mode="before")
    @classmethod
    def _complete_schemes(cls, values: Any) -> Any:
        """Give each scheme all its options; here, as their specs are known by name only."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if isinstance(others := values.get("schemes", {}), Mapping | None):  # a key without a value has no options
            others = {key: {} if options is None else options for key, options in (others or {}).items()}
        scheme = values.get("scheme", {})
        if not isinstance(scheme, Mapping) or not isinstance(others, Mapping):
            return values
        if "scheme" in values:
            own = lab_schemes.options_of(scheme["name"], scheme, others) if "name" in scheme else scheme
            values["scheme"] = lab_schemes.parse(own, where="scheme").model_dump(mode="json")
        if "schemes" in values:
            values["schemes"] = {key: _complete(key, scheme, others) for key in others}
        return values

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        if self.report == "validation" and not self.data.validation:
            raise UserError("report='validation': needs images to validate on; set data.validation")
        if self.augment not in (good := AUGMENTATIONS[self.task]):
            raise UserError(f"augment={self.augment!r}: cannot be used with task {self.task}; use {' or '.join(good)}")
        if self.augment == "resized-crop" and (self.data.size is None or self.data.memory):
            raise UserError("augment='resized-crop': cuts images as stored; set data.size and data.memory: false")
        if self.schedule.warmup >= self.epochs:
            raise UserError(f"schedule.warmup={self.schedule.warmup}: must be less than epochs={self.epochs}")
        if late := [epoch for epoch in self.schedule.milestones if epoch >= self.epochs]:
            raise UserError(f"schedule.milestones: {late[0]} has no effect with epochs={self.epochs}")
        if (fall := self.schedule.fall or 0) > (most := self.epochs - self.schedule.warmup):
            raise UserError(f"schedule.fall={fall}: longer than the {most} epochs after warm-up; use fall <= {most}")
        if self.model.tasks and self.task not in self.model.tasks:
            raise UserError(
                f"model.name={self.model.name!r}: is a network for {' and '.join(self.model.tasks)}, the recipe's task "
                f"is {self.task}; choose another, or set task"
            )
        self._check(self.scheme)
        for key, options in self.schemes.items():
            if key == self.scheme["name"]:
                raise UserError(f"schemes.{key}: has no effect, the recipe's own scheme has that name; rename it")
            try:
                self._check(options)
            except UserError as error:
                raise UserError(f"schemes.{key}: {error}") from None
        if self.published is not None:
            first = (self.source.task or self.task) if self.source else None
            known = dict.fromkeys([*self.every_scheme(), *lab_schemes.SCHEMES])
            self.published.check(known, task=self.task, first=first)
        return self

    def _check(self, options: Mapping[str, Any]) -> lab_schemes.Spec:
        """The scheme with these options, which the epochs hold, and whose teacher makes a recipe."""
        if self.source is not None:  # there the scheme is at work
            return self.first()._check(options)
        spec = lab_schemes.parse(options)
        if not spec.fits(self.task):
            raise UserError(f"scheme={spec.name!r}: is not for the task {self.task}; leave it out")
        spec.check(self.epochs)
        for teacher in spec.teachers():
            self.teacher(teacher)
        return spec

    def teacher(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe of a teacher: this one with `changes`, standard training, and a name of its own.

        Raises ``UserError`` where that makes no recipe.
        """
        # What changes no number of the teacher's training must not make it another teacher.
        return self._before("teacher", changes, "scheme.teacher")

    def first(self) -> Recipe:
        """The recipe of the training that `source` describes, with this one's schemes, and a name of its own.

        Raises ``UserError`` where that makes no recipe.
        """
        assert self.source is not None
        self._check_source(self.source)
        found = self._before("source", self.source.changes(), "source")
        if found.data.judge != self.data.judge:
            raise UserError(
                f"source.data.judge={found.data.judge!r}: must be {self.data.judge!r} as data.judge is; set both alike"
            )
        # The schemes are no part of the name: a scheme's run lies beside those of the others.
        values = {**found.canonical(), "scheme": self.scheme, "schemes": self.schemes, "snapshots": self.snapshots}
        try:
            return parse(Recipe, values).at(self._base)
        except UserError as error:
            raise UserError(f"source: {error}") from None

    def _check_source(self, source: SourceSpec) -> None:
        """Raise ``UserError`` where the first training needs a section of its own, or has no one last layer."""
        task = source.task or self.task
        unfit = {"data": task != self.task, "model": bool(self.model.tasks) and task not in self.model.tasks}
        if missing := [f"source.{key}" for key, no in unfit.items() if no and getattr(source, key) is None]:
            raise UserError(
                f"{', '.join(missing)}: {'is' if len(missing) == 1 else 'are'} missing; the task {task} needs its own"
            )
        if task == "detection" and source.leave is None:
            raise UserError(
                "source.leave: is missing; name the layers of the first detector that know its classes, such as "
                "head.classes.out, or [] to take over all"
            )

    def _before(self, what: str, changes: Mapping[str, Any], where: str) -> Recipe:
        """This recipe with `changes`, standard training, and a name that tells what is trained."""
        alone: dict[str, Any] = {"scheme": {"name": "standard"}, "schemes": {}, "source": None, "seeds": 1}
        # The name is a hash of what changes numbers, so that these are the same for all.
        same = {"snapshots": None, "eval_every": 1, "report": "last"}
        values = {**self.canonical(), **alone, **same, **changes, "name": what}
        if changes.get("task", self.task) != self.task and "eval_batch" not in changes:
            del values["eval_batch"]
        try:
            found = parse(Recipe, values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        name = re.sub(r"[^A-Za-z0-9._+-]", "-", found.model.name)[:60]
        named = {"name": f"{what}-{name}-{found.fingerprint()[:8]}", "eval_every": self.eval_every}
        return parse(Recipe, {**found.canonical(), **named}).at(self._base)

    def scheme_spec(self, key: str) -> lab_schemes.Spec:
        """The scheme that ``key`` stands for: the recipe's own, one of ``schemes``, or one with its defaults.

        Raises ``UserError`` for a key that is none of them, and for a schedule that the epochs do not hold.
        """
        options = lab_schemes.options_of(key, self.scheme, self.schemes)
        name = options["name"]
        if not objects.is_object(name) and lab_schemes.PLUS not in name and name not in lab_schemes.SCHEMES:
            known = dict.fromkeys([*lab_schemes.SCHEMES, *self.schemes])
            raise UserError(f"scheme={key!r}: unknown scheme; {did_you_mean(key, known)}")
        with self.told_of(key):
            return self._check(options)

    @contextmanager
    def told_of(self, key: str) -> Iterator[None]:
        """An error on ``scheme:`` says where in the recipe the scheme ``key`` has its options, of several schemes."""
        try:
            yield
        except UserError as error:
            rest = str(error).removeprefix("scheme")
            if type(error) is not UserError or rest[:1] not in (":", ".") or key == self.scheme["name"]:
                raise
            where = f"schemes.{key}" if key in self.schemes else f"scheme={key!r}: "
            raise UserError(where + (rest if key in self.schemes else rest[1:].lstrip())) from error

    def training_spec(self, key: str) -> lab_schemes.Spec:
        """The scheme that the recipe's own network is trained with; with a ``source`` that is the standard one."""
        spec = self.scheme_spec(key)
        return spec if self.source is None else lab_schemes.StandardSpec()

    def every_scheme(self) -> list[str]:
        """The keys of all schemes there are: standard, the recipe's own, and those of ``schemes``."""
        return list(dict.fromkeys(["standard", str(self.scheme["name"]), *self.schemes]))

    def canonical(self) -> dict[str, Any]:
        """The recipe as plain JSON values, every default filled in; reading it gives it back.

        Phases that the epochs plan are null. Without what no run depends on: profiles, and what was published.
        """
        return self.model_dump(mode="json", exclude={"profiles", "published"})

    def fingerprint(self) -> str:
        """SHA-256 of ``canonical``, in hexadecimal; of what recipes learnt to say later only what is said."""
        values = self.canonical()
        values = {key: value for key, value in values.items() if (key, value) not in _LATER.items()}
        for section, later in _LATER_IN.items():
            values[section] = {
                key: value for key, value in values[section].items() if (key, value) not in later.items()
            }
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def names_folder(name: str) -> bool:
    """Whether a folder can be called that on every system."""
    return _SAFE.fullmatch(name) is not None


def load_recipe(path: str | Path, *, profile: str | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe: the file, then the profile's changes, then ``overrides`` such as ``"optim.lr=0.1"``.

    A profile is merged key by key; where it changes the name of a model or a scheme, that section starts afresh, as
    options belong to a name. Unless it sets a name, ``-<profile>`` is added to the recipe's, so that
    its runs get a folder of their own. An override replaces one value, given as YAML. The recipe must be whole
    by itself and with each of its profiles, chosen or not.
    Raises ``UserError``, one line that names the full key, its value and the remedy.
    """
    path = Path(path)
    values = read(path)
    profiles = values.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise UserError("profiles: must be a mapping of names to changes, such as quick: {epochs: 2}")
    if profile is not None and profile not in profiles:
        known = did_you_mean(profile, map(str, profiles)) if profiles else "the recipe has none"
        raise UserError(f"profile={profile!r}: unknown profile; {known}")
    parse(Recipe, values)
    for name in profiles:
        try:
            parse(Recipe, with_profile(values, str(name), profiles[name]))
        except UserError as error:
            raise UserError(f"profiles.{name}: {error}") from None
    if profile is not None:
        values = with_profile(values, profile, profiles[profile])
    for override in overrides:
        values = with_override(values, override)
    return parse(Recipe, {**values, "profiles": profiles}).at(path.parent)


def _complete(key: Any, scheme: Mapping[str, Any], schemes: Mapping[str, Any]) -> Any:
    if not isinstance(key, str) or not names_folder(key):
        raise UserError(f"schemes: {show(key)} {_FOLDER}")
    if key == ALL:
        raise UserError(f"schemes.{ALL}: is the word for all schemes together in reaper compare; rename it")
    if not isinstance(schemes[key], Mapping):
        return schemes[key]
    if key in lab_schemes.SCHEMES and schemes[key].get("name", key) != key:
        raise UserError(
            f"schemes.{key}.name={show(schemes[key]['name'])}: {key} is the name of another scheme; give it another key"
        )
    whole = {name: options for name, options in schemes.items() if isinstance(options, Mapping)}
    own = {} if scheme.get("name") == key else scheme  # refused below
    return lab_schemes.parse(lab_schemes.options_of(key, own, whole), where=f"schemes.{key}").model_dump(mode="json")
