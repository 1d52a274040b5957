"""What a model of transformers is called with."""

from __future__ import annotations

from typing import Any

from torchreaper.errors import ReaperError
from torchreaper.flow.tracing import undisturbed


def first_image(model: Any, loader: Any) -> dict[str, Any]:
    """The first image of the loader's data set, as a batch by the name that the model has for it."""
    try:
        with undisturbed(model):
            images = loader.collate_fn([loader.dataset[0]])[model.main_input_name]
    except (TypeError, KeyError, NotImplementedError, AttributeError) as error:
        raise ReaperError(f"example_inputs=None: no first image ({error!r}); pass what the model takes") from error
    return {model.main_input_name: images}
