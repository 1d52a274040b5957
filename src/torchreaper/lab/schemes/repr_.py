"""RePr: drop the filters that overlap most, train without them, bring them back orthogonal (Algorithm 1, the paper)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor
from torch.nn.functional import cross_entropy

import torchreaper as tr
from torchreaper.lab import objects
from torchreaper.lab.data import FixedBatches, epoch_seed
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Phase, Setup, Spec
from torchreaper.lab.settings import Settings, did_you_mean
from torchreaper.transitions import PHASES, planned

#: How a criterion of the user's own is named.
EXAMPLE = "mycriteria:Smallest"
Loss = Callable[[Any, Tensor], Tensor]
#: How many images a criterion reads where the recipe does not say: the paper's number, for its oracle.
IMAGES = 5000
#: How many training images candidates for returning filters are measured on, at most.
CANDIDATE_IMAGES = 1000


def _open_unit(value: Any) -> Any:
    if isinstance(value, (int, float)) and not 0 < value < 1:
        raise ValueError("must be in (0, 1), for example 0.3")
    return value


def _gain(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise ValueError('must be "kept" or a number')
    return value


def _section(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


def _complete(reinit: ReinitSpec) -> ReinitSpec:
    """Check what was given, and put the method's own defaults in."""
    try:
        return ReinitSpec(**{**reinit.build().describe(), "candidates": reinit.candidates})
    except tr.ReaperError as error:
        # It names keys as reinit.key, and the method as reinit; what is before the key is put there by the caller.
        raise UserError(str(error).replace("reinit=", "method=", 1).removeprefix("reinit.")) from None


def _names(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return tuple(value)  # YAML has lists only
    if value is None or isinstance(value, str):
        return value
    raise ValueError("must be the name of a layer or a list of names; * and ? are wildcards")


def _list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _names(value)


Names = Annotated[str | tuple[str, ...] | None, BeforeValidator(_names)]


class ReinitSpec(Settings):
    """How a dropped filter comes back: the values of `tr.Reinit`, which checks them and has the defaults.

    `candidates`: for every returning filter so many directions are tried, on 1,000 training images or all if there are
    fewer, and those that the loss wants most are taken; see `tr.Candidates`. None: directions are left to chance.
    """

    method: str = "orthogonal"
    gain: Annotated[str | float | None, BeforeValidator(_gain)] = None
    bias: str | None = None
    consumers: str | None = None
    optimizer_state: str | None = None
    norms: str | None = None
    candidates: Annotated[int | None, Field(ge=2)] = None

    def build(self, batches: Iterable[Any] = (), loss_fn: Loss = cross_entropy) -> tr.Reinit:
        """The method's own object; candidates are measured on `batches`."""
        values = self.model_dump(exclude_none=True)
        if self.candidates is not None:
            values["candidates"] = tr.Candidates(batches, loss_fn, times=self.candidates)
        return tr.Reinit(**values)


def _own_criterion(name: str, batches: FixedBatches, loss_fn: Loss, base: Path | None) -> tr.criteria.Criterion:
    """The object that `package.module:attribute` is, or makes; a callable gets `batches` and `loss_fn` if it asks."""
    found: Any = objects.find(name, "scheme.criterion", base=base, example=EXAMPLE)
    if isinstance(found, type) or not hasattr(found, "scores"):
        offered = {"batches": batches, "loss_fn": loss_fn}
        what = name.partition(":")[2]
        found, _ = objects.call(found, what, {}, f"scheme.criterion={name!r}", base=base, offered=offered)
    try:
        return tr.criteria.make(found)
    except tr.ReaperError as error:
        raise UserError(f"scheme.criterion={name!r}: {error}") from error


class RePrTraining(Attached):
    """A `tr.RePr` whose unit is the epoch."""

    def __init__(self, scheme: tr.RePr) -> None:
        self._scheme = scheme

    @property
    def phase(self) -> Phase:
        """The phase the next epoch is trained in."""
        return "sub" if self._scheme.phase == "sub" else "full"

    @property
    def dropped(self) -> dict[str, tuple[int, ...]]:
        """The filters that are absent now, by layer."""
        return {name: tuple(filters) for name, filters in self._scheme.dropped.items() if filters}

    @property
    def bank(self) -> tr.FilterBank | None:
        """The filters that are ranked, and those that are not."""
        return self._scheme.bank

    def ended(self, epoch: int) -> tr.Transition | None:
        """At the end of a phase, drop the worst filters or bring them back."""
        with warnings.catch_warnings():
            # It stands in the transition's notes, which the run writes down and shows.
            warnings.simplefilter("ignore", tr.OneLayerWarning)
            return self._scheme.step()

    def state_dict(self) -> dict[str, Any]:
        """Step, cycle, dropped filters and generator state."""
        return {**super().state_dict(), "repr": self._scheme.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, inside a sub-network phase too: the filters dropped then are dropped again."""
        super().load_state_dict(state)
        self._scheme.load_state_dict(state["repr"])

    def close(self) -> None:
        """Take every hook off the model and the optimizer."""
        self._scheme.remove()


class RePrSpec(Spec):
    """The scheme `repr` and its options; see `tr.RePr`.

    `full`, `sub` and `cycles` that are not given are planned by the run's epochs.

    `criterion`: a name, or `package.module:attribute`: an object with `scores(bank)`, or a class or function that makes
    one and may ask for `batches` and `loss_fn`. `images`: how many images a criterion that reads images reads, of those
    held out for validation, or without any of those of training; None: 5000, or all if there are fewer. `sub: 0`
    re-initialises filters as soon as they are chosen.
    """

    summary: ClassVar[str] = "drop the filters that overlap most, train without them, bring them back"
    source: ClassVar[str] = "Prakash et al. 2019, algorithm 1"
    hands: ClassVar[frozenset[str]] = frozenset({"weights"})
    turn: ClassVar[int] = 1
    name: Literal["repr"] = "repr"
    full: Annotated[int | None, Field(ge=1)] = None
    sub: Annotated[int | None, Field(ge=0)] = None
    cycles: Annotated[int | None, Field(ge=0)] = None
    fraction: Annotated[float, BeforeValidator(_open_unit)] = 0.3
    criterion: str = "orthogonality"
    images: Annotated[int | None, Field(ge=1)] = None
    reinit: Annotated[ReinitSpec, BeforeValidator(_section), AfterValidator(_complete)] = _complete(ReinitSpec())
    subnetwork: Literal["auto", "masked", "compact"] = "auto"
    skip: Names = "first"
    include: Annotated[tuple[str, ...], BeforeValidator(_list)] = ()
    scope: Names = None
    min_filters: Annotated[int, Field(ge=1)] = 1
    max_per_layer: Annotated[float, Field(gt=0, le=1)] = 1.0

    def check(self, epochs: int) -> None:
        """Refuse an unknown criterion, images for one that reads none, and a schedule for which `epochs` are too few.

        Filters return at the end of an epoch, so a schedule needs one epoch more than its cycles have:
        else the run would end with filters that were never trained.
        """
        known = tr.criteria.names()
        if objects.is_object(self.criterion):
            try:
                objects.check_form(self.criterion, EXAMPLE)
            except ValueError as error:
                raise UserError(f"scheme.criterion={self.criterion!r}: {error}") from None
        elif self.criterion not in known:
            near = did_you_mean(self.criterion, known)
            raise UserError(f"scheme.criterion={self.criterion!r}: unknown criterion; {near}")
        elif self.images is not None and not tr.criteria.needs_data(self.criterion):
            raise UserError(
                f"scheme.images={self.images}: has no effect with criterion {self.criterion!r}, which reads none; "
                "leave it out"
            )
        full, sub, cycles = planned(epochs, self.full, self.sub, self.cycles)
        need = cycles * (full + sub)
        if epochs > need or cycles == 0:
            return
        asked = f"scheme: full={full}, sub={sub}, cycles={cycles} need {need} epochs"
        given = [name for name in PHASES if getattr(self, name) is not None]
        remedy = f"raise epochs or lower {' or '.join(given) if given and self.cycles is None else 'cycles'}"
        last = need - sub
        if epochs == need:
            raise UserError(
                f"{asked} and at least one more for the filters that return after epoch {need}, "
                f"the recipe has {epochs}; {remedy}"
            )
        if epochs > last and sub:
            inside = f", which end inside the sub-network phase of epochs {last + 1} to {need}"
            raise UserError(f"{asked}, the recipe has {epochs}{inside}; {remedy}")
        raise UserError(f"{asked}, the recipe has {epochs}; {remedy}")

    def ranking(
        self,
        batches: FixedBatches,
        *,
        seed: int,
        base: Path | None = None,
        loss_fn: Loss = cross_entropy,
        answers: str = "classes",
    ) -> tr.criteria.Criterion:
        """The criterion; one that reads images reads `images` of those in `batches`, chosen by `seed`.

        Raises:
            UserError: There are fewer images than `images`; or the user's own criterion, which is looked for in `base`
                too, cannot be made.
        """
        there = batches.images
        if self.images is not None and self.images > there:
            raise UserError(
                f"scheme.images={self.images}: only {there} {batches.what} images are there; use images <= {there}"
            )
        count = self.images or min(IMAGES, there)
        chosen = batches.take(count, seed=epoch_seed(seed, 0, "images"))
        if objects.is_object(self.criterion):
            return _own_criterion(self.criterion, chosen, loss_fn, base)
        if self.criterion == "oracle" and answers != "classes":  # nothing that is plainly right or wrong
            return tr.criteria.Oracle(chosen, loss_fn, measure="loss")
        return tr.criteria.make(self.criterion, chosen, loss_fn)

    def attach(self, setup: Setup) -> Attached:
        """Put RePr to work on the network; what it cannot work with is a `UserError`."""
        built = {"name", "criterion", "images", "reinit"}
        options = {key: getattr(self, key) for key in type(self).model_fields if key not in built}
        phases = planned(setup.epochs, self.full, self.sub, self.cycles)
        options.update(zip(PHASES, phases, strict=True))
        # Called as criteria call the network; but what training wants, training images tell.
        images = replace(setup.training, arguments=setup.batches.arguments)
        images = images.take(min(CANDIDATE_IMAGES, images.images), seed=epoch_seed(setup.seed, 0, "candidates"))
        try:
            scheme = tr.RePr(
                setup.model,
                setup.optimizer,
                setup.example_inputs,
                criterion=self.ranking(
                    setup.batches, seed=setup.seed, base=setup.base, loss_fn=setup.loss, answers=setup.answers
                ),
                reinit=self.reinit.build(images, setup.loss),
                followers=setup.followers,
                seed=setup.seed,
                **options,
            )
        except tr.ReaperError as error:
            raise UserError(f"scheme: {error}") from error
        return RePrTraining(scheme)
