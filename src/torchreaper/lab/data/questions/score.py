"""How right an answer is, where several people were asked."""

from __future__ import annotations

from jaxtyping import Float64, Int64
from torch import Tensor

_AGREE = 3  # people whose answer is surely right


def accuracy(
    predicted: Int64[Tensor, " questions"], targets: Int64[Tensor, "questions people"]
) -> Float64[Tensor, " questions"]:
    """How right each predicted answer is, 0 to 1.

    With the answers of several people: min(count / 3, 1), where ``count`` of them gave that answer, mean over all ways
    to leave one of them out. With that of one: 1 where it is the same. Answers numbered -1 are nobody's: no prediction
    is one of them.
    Source: Antol et al. 2015, section 3; the mean is that of the released evaluation.
    """
    people = targets.shape[1]
    same = (predicted[:, None] == targets) & (targets >= 0)
    count = same.sum(1).double()
    if people == 1:
        return count
    # One of the `count` is left out `count` times of `people`.
    without, within = ((count - 1) / _AGREE).clamp(max=1), (count / _AGREE).clamp(max=1)
    return (count * without + (people - count) * within) / people
