"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, part of the library, no download."""

from __future__ import annotations

import torch

from torchreaper.lab.data.split import Split, choose

CLASSES = tuple("0123456789")
_TEST_IMAGES = 797


def digits() -> tuple[Split, Split]:
    """The training set (1,000 images) and the test set (797, classes in proportion), grey, 8x8.

    The test set is always the same. The data's 17 grey levels, 0 to 16, are spread over 0 to 255.
    Source: UCI "Optical Recognition of Handwritten Digits" (its test part), as in scikit-learn.
    """
    from sklearn.datasets import load_digits  # a slow import, needed here only

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    test = choose(labels, _TEST_IMAGES, seed=0, balanced=False)
    train = torch.ones(len(labels), dtype=torch.bool)
    train[test] = False
    return Split(images[train], labels[train]), Split(images[test], labels[test])
