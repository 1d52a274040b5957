import pytest

from torchreaper.lab.data.questions import QuestionsSpec
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

EASY = {"name": "easy-vqa"}
PATHS = [f"{part}_{what}" for part in ("train", "test") for what in ("questions", "annotations", "images")]
VQA = {"name": "vqa", **dict.fromkeys(PATHS, "x")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "vqa2"}, "data.name='vqa2': unknown data of questions; did you mean 'vqa'? known: easy-vqa, vqa"),
        ({**VQA, "path": "x"}, "data.path='x': has no effect with name='vqa'; leave it out"),
        ({**EASY, "path": ""}, "data.path: is missing; name='easy-vqa' needs it"),
        ({**EASY, "test_images": "x"}, "data.test_images='x': has no effect with name='easy-vqa'; leave it out"),
        ({**VQA, "train_annotations": None}, "data.train_annotations: is missing; name='vqa' needs it"),
        ({**EASY, "answers": 1}, "data.answers=1: must be at least 2"),
        ({**EASY, "answers": "all"}, "data.answers='all': must be a whole number"),
        ({**EASY, "vocabulary": 0}, "data.vocabulary=0: must be at least 1"),
        ({**EASY, "words": 0}, "data.words=0: must be at least 1"),
        ({**EASY, "limits": 3}, "data.limits: unknown key; did you mean data.limit?"),
        ({**EASY, "workers": 3}, "data.workers=3: has no effect with memory=True; leave it out or set memory: false"),
        (
            {**EASY, "judge": "validation"},
            "data.judge='validation': needs something held out to judge on; set validation to how much",
        ),
        ({**EASY, "split_seed": 3}, "data.split_seed=3: has no effect without limit, test_limit or validation"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(values, message):
    with pytest.raises(UserError) as caught:
        parse(QuestionsSpec, values, at="data")
    assert str(caught.value) == message


def test_how_many_answers_by_default():
    assert parse(QuestionsSpec, EASY).answers is None
    assert parse(QuestionsSpec, VQA).answers == 1000
    assert parse(QuestionsSpec, {**EASY, "answers": 5}).answers == 5


@pytest.mark.parametrize("values", [EASY, VQA, {**EASY, "path": "a", "limit": 5, "split_seed": 1}])
def test_a_spec_reads_itself_back_and_is_a_key(values):
    spec = parse(QuestionsSpec, values)
    again = parse(QuestionsSpec, spec.model_dump(mode="json"))
    assert again == spec
    assert len({spec, again, parse(QuestionsSpec, {**values, "vocabulary": 2})}) == 2
