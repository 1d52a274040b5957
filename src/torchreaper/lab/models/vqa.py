"""Visual question answering: features of a convnet, a question read by an LSTM, an MLP over the answers."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from torchreaper.lab.errors import UserError
from torchreaper.lab.models.headless import without_classifier
from torchreaper.lab.models.spec import ModelSpec, build
from torchreaper.lab.settings import Settings

PADDING = 0
"""The word number behind the end of a question."""


def _small() -> ModelSpec:
    # Without BatchNorm, which costs time and, measured on easy-VQA, accuracy.
    return ModelSpec(name="cnet", options={"depth": 4, "width": 16, "pool": True})


class VQAOptions(Settings):
    """The options of ``vqa``; the defaults suit pictures of 64x64 pixels, such as easy-VQA's.

    Attributes:
        cnn: the convnet that looks at the picture, as a recipe's ``model:`` section; it is used without its classifier.
        embedding: numbers a word. hidden: width of the LSTM.
        mlp: width of the MLP's two hidden layers, and with ``fusion="product"`` of what is multiplied.
        dropout: probability, behind both hidden layers.
        fusion: what the MLP reads: "concat", the features and the question side by side, or "product", the product of
            a linear map of each.
        frozen: the convnet is not trained: its parameters take no gradient, its norms and dropouts stay as in
            evaluation.
    """

    cnn: ModelSpec = Field(default_factory=_small)
    embedding: int = Field(default=32, ge=1)
    hidden: int = Field(default=64, ge=1)
    mlp: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    fusion: Literal["concat", "product"] = "concat"
    frozen: bool = False


class VQA(nn.Module):
    """Children cnn, embedding, lstm, mlp; with a product of both sides also ``image`` and ``question``.

    (images [n, channels, height, width], questions int64 [n, words]) -> logits [n, answers]. A question ends before
    its first 0, and what stands behind it changes nothing: the LSTM runs forward only, and its state at the last word
    is what is read. A question without words is read as one 0.

    Args:
        cnn: images -> features [n, features]. features: how many.
        answers: how many. vocabulary: how many word numbers there are, 0 among them.
    """

    def __init__(self, options: VQAOptions, cnn: nn.Module, features: int, *, answers: int, vocabulary: int) -> None:
        super().__init__()
        self.cnn = cnn
        self.embedding = nn.Embedding(vocabulary, options.embedding, padding_idx=PADDING)
        self.lstm = nn.LSTM(options.embedding, options.hidden, batch_first=True)
        self.product = options.fusion == "product"
        if self.product:
            self.image = nn.Linear(features, options.mlp)
            self.question = nn.Linear(options.hidden, options.mlp)
        width = options.mlp if self.product else features + options.hidden
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, inputs in enumerate((width, options.mlp), start=1):
            layers[f"fc{number}"], layers[f"relu{number}"] = nn.Linear(inputs, options.mlp), nn.ReLU()
            if options.dropout:
                layers[f"dropout{number}"] = nn.Dropout(options.dropout)
        layers["fc"] = nn.Linear(options.mlp, answers)
        self.mlp = nn.Sequential(layers)
        self.frozen = options.frozen
        if self.frozen:
            self.cnn.requires_grad_(False).eval()

    def forward(self, images: Tensor, questions: Tensor) -> Tensor:
        """(images, word numbers) -> logits [n, answers]."""
        seen, asked = self.cnn(images), self._read(questions)
        # Without the tanh of others: the pictures' side would saturate while only questions are understood.
        fused = self.image(seen) * self.question(asked) if self.product else torch.cat([seen, asked], 1)
        logits: Tensor = self.mlp(fused)
        return logits

    def train(self, mode: bool = True) -> VQA:
        """As of any module; a frozen convnet stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.cnn.eval()
        return self

    def _read(self, questions: Tensor) -> Tensor:
        """The LSTM's state [n, hidden] at each question's last word."""
        states: Tensor = self.lstm(self.embedding(questions))[0]
        last = ((questions != PADDING).sum(1) - 1).clamp(min=0)
        return states.gather(1, last[:, None, None].expand(-1, 1, self.lstm.hidden_size)).squeeze(1)


def vqa(
    options: VQAOptions,
    *,
    in_channels: int,
    classes: int,
    image_size: tuple[int, int],
    vocabulary: int,
    words: int,
    base: Path | None = None,
) -> VQA:
    """Make the network for pictures [n, in_channels, *image_size] and questions [n, words]; ``classes`` answers.

    All weights come from the global random state. ``vocabulary``: how many word numbers there are, that of padding
    among them. ``words``: the longest question; no size of the network depends on it. ``base``: where a convnet of the
    user's own is found.
    Raises ``UserError`` where the convnet cannot be built, or cannot be used without its classifier.
    Source: the RePr paper, section 6; Antol et al., VQA (2015), section 4.2.
    """
    seed = int(torch.randint(2**31, ()))
    try:
        network = build(
            options.cnn.name,
            options.cnn.options,
            in_channels=in_channels,
            classes=2,  # of a layer that is taken off
            image_size=image_size,
            generator_seed=seed,
            base=base,
        )
    except UserError as error:  # it does not know where its section stands
        raise UserError(re.sub(r"^model\.", "model.options.cnn.", str(error))) from error
    named = f"model.options.cnn.name={options.cnn.name!r}"
    cnn, features = without_classifier(network, named, in_channels=in_channels, image_size=image_size)
    return VQA(options, cnn, features, answers=classes, vocabulary=vocabulary)
