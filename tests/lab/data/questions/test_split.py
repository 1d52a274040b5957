from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.data.questions.conftest import pixels

from torchreaper.lab.data import Share, Split
from torchreaper.lab.data.questions import Questions, QuestionsSpec, load_questions
from torchreaper.lab.errors import UserError


def made(count=13, pictures=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (pictures, 3, 5, 6), generator=generator, dtype=torch.uint8)
    return Questions(
        Split(images, torch.zeros(pictures, dtype=torch.int64)),
        torch.randint(0, pictures, (count,), generator=generator),
        torch.randint(0, 9, (count, 7), generator=generator),
        torch.randint(-1, 5, (count, 10), generator=generator),
        torch.randint(0, 3, (count,), generator=generator),
    )


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(1, 3))
def test_each_question_comes_with_its_picture_and_answers(order, ranks):
    split = made()
    order = [torch.tensor(batch) for batch in order]
    parts = [list(split.read(order, share=Share(rank, ranks))) for rank in range(ranks)]
    for number, index in enumerate(order):
        read = [part[number] for part in parts]
        assert torch.equal(torch.cat([images for (images, _), _ in read]), split.pictures.images[split.picture[index]])
        assert torch.equal(torch.cat([questions for (_, questions), _ in read]), split.questions[index])
        assert torch.equal(torch.cat([labels for _, labels in read]), split.labels[index])


def test_it_tells_what_it_is():
    split = made()
    assert len(split) == 13
    assert split.shape == (3, 5, 6)
    assert not split.prepared
    moved = split.to("meta")
    assert {one.device.type for one in (moved.labels, moved.questions, moved.picture, moved.kinds)} == {"meta"}
    assert moved.pictures.labels.device.type == "meta"


def test_what_is_the_same():
    split = made()
    assert split.same(made())
    assert not split.same(made(seed=1))
    assert not split.same(split.pictures)
    for name in ("picture", "questions", "labels", "kinds"):
        assert not split.same(replace(split, **{name: getattr(split, name).flip(0)})), name
    other = Split(255 - split.pictures.images, split.pictures.labels)
    assert not split.same(replace(split, pictures=other))


@pytest.mark.parametrize("kind", ["crop-flip", "resized-crop"])
def test_augmentation_is_refused_before_anything_is_read(kind):
    with pytest.raises(UserError) as caught:
        made().read([torch.arange(3)], augmentation=kind)
    assert str(caught.value) == (
        f"augment={kind!r}: a mirror image or a crop would make the answers to questions wrong; use augment: none"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_are_read_when_needed_are_the_same(easy, tmp_path, workers):
    spec = easy()
    held = load_questions(QuestionsSpec(**spec), tmp_path)
    streamed = load_questions(QuestionsSpec(**spec, memory=False, workers=workers), tmp_path)
    order = [torch.tensor([0, 4, 8, 1]), torch.tensor([11, 3, 3, 2]), torch.tensor([7])]
    for ((a, b), c), ((d, e), f) in zip(held.train.read(order), streamed.train.read(order), strict=True):
        assert torch.equal(a, d)
        assert torch.equal(b, e)
        assert torch.equal(c, f)
    (images, _), _ = next(streamed.train.read([torch.tensor([5])]))
    assert torch.equal(images[0], torch.from_numpy(pixels(1)).permute(2, 0, 1))
    torch.testing.assert_close(held.mean, streamed.mean)
    assert streamed.train.same(streamed.train)
