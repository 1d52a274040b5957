"""RePr: the cycle full network -> sub-network -> full network, as a small state machine (Algorithm 1 of the paper)."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchreaper import criteria
from torchreaper.bank import find_filters
from torchreaper.checks import check_counts, check_end, check_weights, checked_phases
from torchreaper.errors import NoEffectWarning, OneLayerWarning, ReaperError
from torchreaper.filters import Skip
from torchreaper.fitting import check_optimizers, warn_without_effect, warn_without_phase
from torchreaper.flow.tracing import ExampleInputs, refuse_shards
from torchreaper.ranks import Wrappers, decided_by_rank_zero
from torchreaper.reinit import Reinit, as_reinit
from torchreaper.saved import plain, read_state
from torchreaper.state import Optimizers, as_optimizers
from torchreaper.subnetwork.modes import Mode, check_mode, resolve
from torchreaper.text import percent
from torchreaper.transitions import Transition, forget_scores, packed, transition_at

log = logging.getLogger("torchreaper")

ONE_LAYER_SHARE = 0.8


class RePr:
    """Train a convnet with RePr: attach, and call :meth:`step` once per epoch.

    ::

        scheme = tr.RePr(model, optimizer, example_inputs, epochs=40)
        for epoch in range(40):
            train_one_epoch(model, optimizer)  # its rate should stay until the last return, after 32
            scheme.step()

    The paper has ``full=20, sub=10, cycles=3`` in 100 epochs or more.

    Args:
        model: a plain ``nn.Module``, before DDP or ``torch.compile`` wrap it.
        optimizer: the one that trains it, or a list.
        example_inputs: a batch as in training (tensor, tuple or dict); used once, to find the channels.
        epochs: units (calls of ``step``) of the whole training. Of the phases below those that are not given are
            planned by it, and all are refused if training would end before the last filters are back and trained. A
            training that goes on for longer than planned needs the ``epochs`` it began with.
        full: S1, units of the whole network before each drop. Default: about a twentieth of ``epochs``, or 2.
        sub: S2, units of the sub-network. 0: filters are re-initialised as soon as they are chosen, a control (and
            ``full``, by default, as long as both phases). Default: as many as ``full``, or 2.
        cycles: N. 0: nothing is ever dropped. Default: as many as fit into four fifths of ``epochs``, or 8.
        fraction: p, of the ranked filters.
        criterion: a registered name or an object with ``scores(bank)``; one that reads images: :func:`criteria.make`.
        reinit: a method's name or a :class:`Reinit`.
        subnetwork: "compact": in sub-network phases tensors are really smaller. "masked": the same numbers at full
            width. "auto": compact where that is exact and some layer can be smaller, else masked, and it says why.
        exact_dropout: compact draws the random numbers of ``nn.Dropout`` and ``nn.RReLU`` modules at full width, so
            that they are masked's; functional dropout cannot be reached.
        followers: copies of the model that average over ``parameters()``; see :meth:`FilterBank.attach`.
        skip, include, scope: what is ranked; see :func:`find_filters`.
        min_filters: no layer keeps fewer filters.
        max_per_layer: no layer loses a larger share of its filters.
        seed: of the scheme's own random generator; no global one is read or set.

    Attributes:
        bank: the :class:`FilterBank` it works on.
        history: every :class:`Transition` so far, with the scores of the last 32 drops.
        steps: how many times ``step`` was called.

    Raises:
        ReaperError: an argument, the model or the optimizer does not fit; the message says what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        example_inputs: ExampleInputs,
        *,
        epochs: int | None = None,
        full: int | None = None,
        sub: int | None = None,
        cycles: int | None = None,
        fraction: float = 0.30,
        criterion: str | criteria.Criterion = "orthogonality",
        reinit: str | Reinit = "orthogonal",
        subnetwork: str = "auto",
        exact_dropout: Any = False,
        followers: Any = (),
        skip: Skip = "first",
        include: Sequence[str] = (),
        scope: Skip = None,
        min_filters: int = 1,
        max_per_layer: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_counts(min_filters=min_filters, seed=seed)
        full, sub, cycles = checked_phases(epochs, full, sub, cycles)
        if epochs is not None:
            check_end(int(epochs), full, sub, cycles)
        check_mode(subnetwork)
        if not isinstance(exact_dropout, bool):
            raise ReaperError(f"exact_dropout={exact_dropout!r}: must be True or False")
        self.full, self.sub, self.cycles, self.fraction = map(plain, (full, sub, cycles, fraction))
        self.subnetwork, self.exact_dropout = subnetwork, exact_dropout
        self.min_filters, self.max_per_layer = plain(min_filters), plain(max_per_layer)
        self.criterion, self.reinit = criteria.make(criterion), as_reinit(reinit)
        self._criterion_name = criterion if isinstance(criterion, str) else type(criterion).__name__
        optimizers = as_optimizers(optimizer)
        self.bank = find_filters(model, example_inputs, skip=skip, include=include, scope=scope, seed=seed)
        check_optimizers(self.bank, optimizers)
        self.bank.check_settings(fraction, min_filters, max_per_layer)
        resolve(subnetwork, model, self.bank.ranked, optimizers)
        if not sub:
            warn_without_phase(self.reinit, subnetwork, exact_dropout)
        warn_without_effect(self.bank, self.reinit, optimizers)
        if sub and exact_dropout and (subnetwork == "masked" or not self.bank.flow.dropouts):
            why = (
                "masked draws at full width anyway"
                if self.bank.flow.dropouts
                else "no filter passes an nn.Dropout or nn.RReLU"
            )
            warnings.warn(f"exact_dropout=True: has no effect ({why}); leave it out", NoEffectWarning, stacklevel=2)
        self.bank.attach(optimizers, followers)
        self._wrappers = Wrappers()
        self._watch = model.register_forward_pre_hook(self._wrappers.watch) if subnetwork == "compact" else None
        self.history: list[Transition] = []
        self.steps = 0
        self._cycle = 0
        self._reason = ""
        self._removed = False

    @property
    def model(self) -> nn.Module:
        """The model, the same object as given."""
        return self.bank.model

    @property
    def phase(self) -> Literal["full", "sub"]:
        """Whether the whole network or the sub-network trains now."""
        return "sub" if self.bank.dropped else "full"

    @property
    def dropped(self) -> dict[str, tuple[int, ...]]:
        """Layer -> indices of the filters left out now; empty in a full phase."""
        return dict(self.bank.dropped)

    def step(self) -> Transition | None:
        """End a unit (an epoch, or what you choose), after ``optimizer.step()``.

        Under ``torch.distributed`` it is collective: every rank calls it, and rank 0 decides what goes.

        Returns:
            The :class:`Transition` that happened, or ``None``.
        """
        if self._removed:
            raise ReaperError("step: the scheme was removed from the model; build a new one to go on")
        due = transition_at(self.steps + 1, self.full, self.sub, self.cycles)
        before, phase, random = (self.steps, self._cycle), self.phase, self.bank.generator.get_state()
        self.steps += 1
        if due is None:
            return None
        kind, self._cycle = due
        try:
            if kind == "drop":
                return self._drop()
            return self.restore() if self.sub else self._renew()
        except BaseException:
            if self.phase == phase:  # nothing was dropped or restored: the step can be tried again
                self.steps, self._cycle = before
                self.bank.generator.set_state(random)
            raise

    def restore(self) -> Transition | None:
        """Bring the dropped filters back now; ``None`` when none are dropped.

        The schedule goes on: leaving a sub-network phase early only lengthens the full phase after it.
        """
        if self.phase == "full":
            return None
        start = time.perf_counter()
        filters = self.dropped
        self._outdate_wrappers()
        notes = self.bank.restore(self.reinit)
        return self._record("restore", filters, {}, start, notes)

    def remove(self) -> None:
        """Take every hook off the model and the optimizer; afterwards nothing of the scheme is left in them.

        Followers lose theirs too, and so do deep copies of the model that are whole.

        Raises:
            ReaperError: filters are dropped; :meth:`restore` brings them back.
        """
        if self.phase == "sub":
            raise ReaperError("remove: the model is in a sub-network phase; call scheme.restore() before")
        self.bank.detach()
        if self._watch is not None:
            self._watch.remove()
        self._removed = True

    def __enter__(self) -> RePr:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.restore()
        finally:  # candidates may not be measurable any more
            self.bank.restore()
            self.remove()

    def state_dict(self) -> dict[str, Any]:
        """Where the scheme stands: small, and loadable with ``weights_only=True``."""
        return {
            "version": 1,
            "config": self._config(),
            "steps": self.steps,
            "cycle": self._cycle,
            "dropped": {name: list(indices) for name, indices in self.dropped.items()},
            "generator": self.bank.generator.get_state(),
            "history": [packed(transition) for transition in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was saved. Load the model and the optimizer before this.

        Raises:
            ReaperError: the state belongs to other settings or another model, is damaged, or filters are dropped now;
                the scheme stays as it was.
        """
        if self.phase == "sub":
            raise ReaperError("load_state_dict: the model is in a sub-network phase; call scheme.restore() before")
        saved = read_state(state, self._config())
        before = self.steps, self._cycle
        self.steps, self._cycle = saved.steps, saved.cycle
        try:
            if saved.dropped:
                self._leave_out(saved.dropped)
        except ReaperError:
            self.steps, self._cycle = before
            raise
        self.bank.generator.set_state(saved.generator)
        self.history = saved.history

    def __str__(self) -> str:
        if self.phase == "sub":
            state = f"sub-network phase of cycle {self._cycle}"
        else:
            state = f"full phase, {self._cycle} of {self.cycles} cycles begun"
        filters, which = self.bank.dropped, "without the dropped filters"
        if not filters:
            filters = self.bank.preview(
                self.fraction, "random", min_filters=self.min_filters, max_per_layer=self.max_per_layer
            ).filters
            which = f"with {self.fraction:.0%} of the ranked filters left out at random"
        share = percent(self.bank.cost(filters).multiply_adds, self.bank.cost({}).multiply_adds)
        smaller = f"sub-network, {which}: {share} of the multiply-adds; {self._way()}"
        return "\n".join(
            [
                f"RePr full={self.full} sub={self.sub} cycles={self.cycles} fraction={self.fraction:g} "
                f"criterion={self._criterion_name} reinit={self.reinit.method}: step {self.steps}, {state}",
                str(self.bank),
                smaller if self.sub else "no sub-network: filters return as soon as they are chosen",
            ]
        )

    def _way(self) -> str:
        """ "compact", or "masked" and why; in a phase, as it is, else as the next one would be."""
        mode, reason = self.bank.mode, self._reason
        if mode is None:
            mode, reason = self._resolved()
        return f"{mode}: {reason}" if reason else mode

    def _resolved(self) -> tuple[Mode, str]:
        return self.bank.resolve(self.subnetwork, drops=max(1, self.cycles - self._cycle + 1))

    def _leave_out(self, filters: Mapping[str, Sequence[int]]) -> None:
        mode, reason = self._resolved()
        self.bank.drop(filters, mode=mode, exact_dropout=self.exact_dropout)
        self._reason = reason
        self._outdate_wrappers()

    def _outdate_wrappers(self) -> None:
        if self.bank.mode == "compact":
            self._wrappers.outdate()

    def _drop(self) -> Transition:
        start = time.perf_counter()
        filters, notes, scores = self._chosen()
        self._leave_out(filters)
        notes.append(f"sub-network: {self._way()}")
        return self._record("drop", dict(self.bank.dropped), scores, start, notes)

    def _renew(self) -> Transition:
        """Drop filters and bring them back at once: re-initialising without a sub-network phase."""
        start = time.perf_counter()
        filters, notes, scores = self._chosen()
        self.bank.drop(filters, mode="masked")
        try:
            notes += self.bank.restore(self.reinit)
        except BaseException:
            self.bank.restore()  # as if nothing had been tried
            raise
        return self._record("restore", filters, scores, start, notes)

    def _chosen(self) -> tuple[dict[str, tuple[int, ...]], list[str], dict[str, Tensor]]:
        """What goes, on every rank; notes on it, and the scores behind it."""
        refuse_shards(self.model)  # by whom it was wrapped since
        filters, notes, scores, random = decided_by_rank_zero(self._decide)
        self.bank.generator.set_state(random)  # so that the return draws the same on every rank
        return filters, notes + self._one_layer(filters), scores

    def _decide(self) -> tuple[dict[str, tuple[int, ...]], list[str], dict[str, Tensor], Tensor]:
        """What goes, notes on it, the scores behind it, and the state of the generator after them."""
        self.bank.history = self.history
        with torch.no_grad():
            scores = self.criterion.scores(self.bank)
        filters, notes = self.bank.select(
            scores, self.fraction, min_filters=self.min_filters, max_per_layer=self.max_per_layer
        )
        check_weights(self.bank.ranked)
        # Copies: a criterion may go on writing into what it gave.
        kept = {x.name: torch.as_tensor(scores[x.name]).detach().to("cpu", copy=True) for x in self.bank.ranked}
        return filters, notes, kept, self.bank.generator.get_state()

    def _one_layer(self, filters: Mapping[str, Sequence[int]]) -> list[str]:
        total = sum(map(len, filters.values()))
        name = max(filters, key=lambda layer: len(filters[layer]), default="")
        if len(self.bank.ranked) < 2 or not total or len(filters[name]) <= ONE_LAYER_SHARE * total:
            return []
        text = f"{len(filters[name])} of {total} dropped filters sit in {name!r}; "
        if self.bank[name].dims < max(layer.dims for layer in self.bank.ranked):
            text += (
                "layers with few dimensions per filter rank high by geometry alone: "
                'criterion="orthogonality-corrected", max_per_layer or skip spread them'
            )
        else:
            text += "max_per_layer spreads them"
        warnings.warn(text, OneLayerWarning, stacklevel=5)
        return [text]

    def _record(
        self,
        kind: Literal["drop", "restore"],
        filters: dict[str, tuple[int, ...]],
        scores: dict[str, Tensor],
        start: float,
        notes: Sequence[str],
    ) -> Transition:
        seconds = time.perf_counter() - start
        transition = Transition(kind, self._cycle, self.steps, filters, scores, seconds, tuple(notes))
        self.history.append(transition)
        forget_scores(self.history)
        verb = "dropped" if kind == "drop" else "restored"
        where = ", ".join(f"{name} {len(indices)}" for name, indices in filters.items())
        way = f"; {self._way()}" if kind == "drop" else ""
        count = sum(map(len, filters.values()))
        log.info("step %d, cycle %d: %s %s filters (%s)%s", self.steps, self._cycle, verb, count, where, way)
        return transition

    def _config(self) -> dict[str, Any]:
        return {
            "full": self.full,
            "sub": self.sub,
            "cycles": self.cycles,
            "fraction": self.fraction,
            "criterion": repr(self.criterion) if is_dataclass(self.criterion) else self._criterion_name,
            "reinit": plain(self.reinit.describe()),
            "min_filters": self.min_filters,
            "max_per_layer": self.max_per_layer,
            "layers": {layer.name: layer.filters for layer in self.bank.layers},
            "ranked": [layer.name for layer in self.bank.ranked],
        }
