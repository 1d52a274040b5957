import pytest

from torchreaper.lab.data import BoxesSpec
from torchreaper.lab.errors import UserError
from torchreaper.lab.settings import parse

COCO = {"name": "coco", "train": "a", "test": "b", "train_images": "c", "test_images": "d", "size": 320}
PARQUET = {"name": "parquet", "train": "a", "test": "b", "size": [96, 128]}
HUB = {"name": "hub", "hub": "cppe-5", "size": 320}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**COCO, "name": "voc"}, "data.name='voc': must be 'coco', 'parquet' or 'hub'"),
        ({key: COCO[key] for key in COCO if key != "size"}, "data.size: is missing"),
        (
            {key: COCO[key] for key in COCO if key != "test_images"},
            "data.test_images: is missing; name='coco' needs it",
        ),
        ({**PARQUET, "train_images": "x"}, "data.train_images='x': has no effect with name='parquet'; leave it out"),
        ({**COCO, "bbox": "x"}, "data.bbox='x': has no effect with name='coco'; leave it out"),
        ({**PARQUET, "hub": "x"}, "data.hub='x': has no effect with name='parquet'; leave it out"),
        ({"name": "hub", "size": 8}, "data.hub: is missing; name='hub' needs it"),
        (
            {**PARQUET, "workers": 4},
            "data.workers=4: has no effect with memory=True; leave it out or set memory: false",
        ),
        (
            {**PARQUET, "judge": "validation"},
            "data.judge='validation': needs something held out to judge on; set validation to how much",
        ),
        ({**PARQUET, "split_seed": 3}, "data.split_seed=3: has no effect without limit, test_limit or validation"),
        ({**COCO, "size": 0}, "data.size=0: must be at least 1"),
        ({**COCO, "size": [32, 10**6]}, "data.size[1]=1000000: must be at most 16384"),
        ({**COCO, "size": True}, "data.size=True: must be [height, width] in pixels, or one whole number for both"),
        (
            {**COCO, "size": [1, 2, 3]},
            "data.size=[1, 2, 3]: must be [height, width] in pixels, or one whole number for both",
        ),
        ({**COCO, "size": ["32", 32]}, "data.size[0]='32': must be a whole number"),
        ({**COCO, "box": "cxcywh"}, "data.box='cxcywh': must be 'xywh' or 'xyxy'"),
        ({**COCO, "classes": ["cat", "cat"]}, "data.classes=['cat', 'cat']: must be one or more names, each once"),
        ({**COCO, "classes": []}, "data.classes=[]: must be one or more names, each once"),
        ({**COCO, "classes": "cat"}, "data.classes='cat': must be a list of names"),
        ({**COCO, "classes": [1]}, "data.classes[0]=1: must be a string"),
        ({**COCO, "limit": 0}, "data.limit=0: must be at least 1"),
        ({**COCO, "limits": 3}, "data.limits: unknown key; did you mean data.limit?"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(values, message):
    with pytest.raises(UserError) as caught:
        parse(BoxesSpec, values, at="data")
    assert str(caught.value) == message


@pytest.mark.parametrize("values", [COCO, PARQUET, HUB, {**HUB, "box": "xyxy", "classes": ["cat"], "objects": "x"}])
def test_a_spec_reads_itself_back_and_is_a_key(values):
    spec = parse(BoxesSpec, values)
    assert parse(BoxesSpec, spec.model_dump(mode="json")) == spec
    assert len({spec, parse(BoxesSpec, values), parse(BoxesSpec, {**values, "size": [7, 9]})}) == 2


def test_one_number_is_a_square():
    assert parse(BoxesSpec, COCO).size == (320, 320)
    assert parse(BoxesSpec, PARQUET).size == (96, 128)
