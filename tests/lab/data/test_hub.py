import pytest

from torchreaper.lab.data import DataSpec, load
from torchreaper.lab.errors import UserError


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_without_a_network_one_clear_line():
    with pytest.raises(UserError) as caught:
        load(DataSpec(name="hub", hub="uoft-cs/cifar10"))
    text = str(caught.value)
    assert text.startswith("data.hub='uoft-cs/cifar10': cannot be reached (")
    assert text.endswith("check the network and the name, or use local files: data.name=parquet")
    assert "\n" not in text


def test_a_data_set_by_name_is_read_by_its_splits(make, tmp_path, capfd):
    # A folder stands in for the hub: the library reads both by the same call.
    make()
    folder = tmp_path / "pets"
    folder.mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").rename(folder / f"{split}.parquet")
    dataset = load(DataSpec(name="hub", hub=str(folder)))
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert dataset.classes == ("cat", "dog")
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match=r"^data\.hub='.*pets': data\.test='validation' cannot be loaded \(.*\)$"):
        load(DataSpec(name="hub", hub=str(folder), test="validation"))
