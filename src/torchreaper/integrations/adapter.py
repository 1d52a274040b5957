"""What the adapters share: a scheme that is built when its stack has model and optimizer, and waits with its state."""

from __future__ import annotations

import base64
import io
import logging
import math
import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torchreaper import loading
from torchreaper.analysis import present_overlap
from torchreaper.checks import checked_phases, is_count
from torchreaper.errors import NoEffectWarning, ReaperError
from torchreaper.flow.tracing import ExampleInputs
from torchreaper.scheme import RePr
from torchreaper.state import Optimizers
from torchreaper.transitions import PHASES, Transition, transition_at

log = logging.getLogger("torchreaper")

_GIVEN_LATER = {"self", "model", "optimizer", "example_inputs", "epochs"}


class Adapter:
    """A :class:`RePr` whose model and optimizer come later, from a trainer that counts its epochs itself.

    Trainers load a callback's state before the optimizer's, and build the optimizer last. So settings are checked here,
    a state is held, and :meth:`start` builds the scheme and gives it the state at the end.

    What a unit ends with happens as the next one begins: trainers validate, log and save in between, and what they
    judge and keep is the network that was trained.

    Args:
        unit: what ``full`` and ``sub`` count: "epoch", or "step" for optimizer steps.
        settings: those of :class:`RePr`, by name. Phases that are not given are planned by the units that will be
            trained, where the trainer knows how many.

    Attributes:
        scheme: the scheme at work, or ``None`` before and after training.

    Raises:
        ReaperError: a setting that :class:`RePr` does not have.
    """

    def __init__(self, *, unit: Literal["epoch", "step"] = "epoch", **settings: Any) -> None:
        known = [name for name in signature(RePr.__init__).parameters if name not in _GIVEN_LATER]
        if "epochs" in settings:
            raise ReaperError(f"epochs={settings['epochs']!r}: the trainer knows how long it trains; leave it out")
        if unknown := sorted(settings.keys() - set(known)):
            raise ReaperError(f"{unknown[0]}={settings[unknown[0]]!r}: RePr has {', '.join(known)}")
        if unit not in ("epoch", "step"):
            raise ReaperError(f'unit={unit!r}: must be "epoch" or "step"')
        self.unit, self.settings = unit, settings
        self.scheme: RePr | None = None
        self._began, self._until = 0, math.inf
        self._example: Tensor | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._left: Mapping[str, Any] | None = None

    def start(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        example_inputs: ExampleInputs,
        *,
        done: int = 0,
        until: int | None = None,
        **more: Any,
    ) -> RePr:
        """Build the scheme; the states of model and optimizer are loaded by now.

        Args:
            model: the plain model.
            optimizer: one, or a list.
            example_inputs: see :class:`RePr`; they are moved to the model's device, and to its type of numbers.
            done: units that were trained before. With a state of the scheme it goes on from there, without one it
                begins there.
            until: units that will have been trained at the end, if that is known. Nothing happens after the last one.
            more: settings that the stack knows, such as ``followers``.

        Raises:
            ReaperError: what :class:`RePr` refuses, or training would end in a sub-network phase.
        """
        example_inputs = _as_parameters(model, example_inputs)
        state, self._loaded = self._loaded, None
        if state is None and self._left and 0 < done >= self._left["began"] + self._left["scheme"]["steps"]:
            state = self._left  # the same trainer goes on
        self._began = done if state is None else state["began"]
        phases = self._phases(state, None if until is None else until - self._began)
        scheme = RePr(model, optimizer, example_inputs, **{**self.settings, **phases, **more})
        self._until = math.inf if until is None else until
        try:
            if until is not None:
                self._check_end(scheme, until - self._began)
            if state is not None:
                scheme.load_state_dict(state["scheme"])
        except Exception:  # a warning is one where it is made an error
            scheme.remove()
            raise
        self.scheme = scheme
        if isinstance(example_inputs, Tensor):
            self._example = torch.zeros((), dtype=example_inputs.dtype).expand(example_inputs.shape)
        return scheme

    def _phases(self, state: Mapping[str, Any] | None, units: int | None) -> dict[str, int]:
        """Those that nobody gave: what they were, where training goes on, even if it is longer now."""
        asked = {name: self.settings.get(name) for name in PHASES}
        plan = dict(zip(PHASES, checked_phases(None if units is None else max(1, units), **asked), strict=True))
        before = (state or {}).get("scheme")
        before = before.get("config") if isinstance(before, Mapping) else None
        if isinstance(before, Mapping):  # if it is damaged, loading tells
            plan |= {name: before[name] for name in PHASES if is_count(name, before.get(name))}
        return {name: plan[name] for name, given in asked.items() if given is None}

    @staticmethod
    def inputs(*choices: Any) -> Any:
        """The first of these that is not None; the last is a batch, of which the first entry are the images."""
        *known, batch = choices
        for choice in known:
            if choice is not None:
                return choice
        images = batch[0] if isinstance(batch, (list, tuple)) else batch
        if not isinstance(images, Tensor) and batch is not None:
            raise ReaperError(f"example_inputs=None: a batch is a {type(batch).__name__}; pass what the model takes")
        return images

    @property
    def example(self) -> Tensor | None:
        """Inputs as those that an earlier part of this training began with; zeros, as only shapes count."""
        found: Tensor | None = (self._loaded or {}).get("example")
        return found

    def _check_end(self, scheme: RePr, units: int) -> None:
        kinds = [due[0] for n in range(units) if (due := transition_at(n, scheme.full, scheme.sub, scheme.cycles))]
        plan = f"full={scheme.full}, sub={scheme.sub}, cycles={scheme.cycles}"
        if kinds and kinds[-1] == "drop":
            text = f"{plan}: training ends after {units} {self.unit}s, in a sub-network phase; "
            given = any(self.settings.get(name) is not None for name in PHASES)
            raise ReaperError(text + ("change one" if given else f"train for more {self.unit}s, or give others"))
        if (whole := kinds.count("restore")) < scheme.cycles:
            text = f"{plan}: only {whole} cycles fit into {units} {self.unit}s; lower full, sub or cycles"
            warnings.warn(text, NoEffectWarning, stacklevel=4)

    def reached(self, done: int) -> list[Transition]:
        """So many units have been trained and the next one begins: end those that the scheme has not counted.

        Returns:
            What happened.
        """
        assert self.scheme is not None
        happened = []
        while self._began + self.scheme.steps < min(done, self._until - 1):
            happened += [transition] if (transition := self.scheme.step()) else []
        return happened

    def values(self) -> dict[str, float]:
        """For a progress bar or logger: phase (1 in a sub-network), filters dropped now, mean overlap of the others."""
        assert self.scheme is not None
        return {
            "repr/sub": float(self.scheme.phase == "sub"),
            "repr/filters_dropped": float(sum(map(len, self.scheme.dropped.values()))),
            "repr/overlap": present_overlap(self.scheme.bank),
        }

    def finish(self) -> None:
        """Take the scheme off the model. Filters that are still dropped are put back as they were when they went."""
        if self.scheme is None:
            return
        self._left = self.state_dict()
        if self.scheme.phase == "sub":
            log.warning("training ended in a sub-network phase: the dropped filters are back as they were")
            self.scheme.bank.restore()
        self.scheme.remove()
        self.scheme = None

    def state_dict(self) -> dict[str, Any]:
        """Loadable with ``weights_only=True``; empty before training, unless a state is waiting."""
        if self.scheme is None:
            return dict(self._loaded or self._left or {})
        return {"scheme": self.scheme.state_dict(), "began": self._began, "example": self._example}

    def as_text(self) -> str:
        """The state as text, for stacks that keep JSON."""
        buffer = io.BytesIO()
        torch.save(self.state_dict(), buffer)
        return base64.b64encode(buffer.getvalue()).decode()

    @staticmethod
    def read_text(text: str) -> dict[str, Any]:
        """The state that :meth:`as_text` wrote.

        Raises:
            ReaperError: it is something else.
        """
        try:
            found = loading.load(base64.b64decode(text))
        except Exception as error:  # whatever the bytes make torch raise
            text = f"checkpoint: RePr's state in it cannot be read ({loading.reason(error)})"
            raise ReaperError(f"{text}; resume from another, or from none") from error
        if not isinstance(found, dict):
            raise ReaperError("checkpoint: holds no state of RePr's; resume from another, or from none")
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold a state until :meth:`start`."""
        self._loaded = state or None


def is_plain(value: Any) -> bool:
    """Whether JSON gives back the same: a string, number, or None, or a list of such."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _as_parameters(model: nn.Module, inputs: Any) -> Any:
    """Inputs where the model's parameters are, those of real numbers with the precision of these."""
    like = next(model.parameters())

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(like if value.is_floating_point() and like.is_floating_point() else like.device)

    return tree_map(moved, inputs)
