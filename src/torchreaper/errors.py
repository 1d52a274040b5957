"""Errors and warnings of the method: one line with the argument, its value and the remedy."""

from __future__ import annotations


class ReaperError(ValueError):
    """A model, argument or checkpoint that the method cannot work with."""


class NoEffectWarning(UserWarning):
    """A setting that cannot change anything in this network."""


class OneLayerWarning(UserWarning):
    """Nearly all dropped filters sit in one layer: the criterion ranks geometry, not redundancy."""
