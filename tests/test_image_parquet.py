"""Parquet, as the Hugging Face hub lays it out, is read as timm reads it, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from imagenet_layouts import (
    OFFICIAL,
    WNIDS,
    Pictures,
    by_pixels,
    expected,
    labelled,
    picture,
    pictures,
    read,
    refused,
    timms,
    write,
)

from harness.errors import DataError
from harness.preprocessing import DEFAULT
from harness.record import Setup
from tasks.data.loader import Batches
from tasks.imagenet import ImageNet


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` caches out of the home folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_parquet(path: Path, files: Pictures, names: tuple[str, ...] | None, named: bool = True) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    path.parent.mkdir(parents=True, exist_ok=True)
    order = names or OFFICIAL
    index = {name: position for position, name in enumerate(order if set(order) >= set(WNIDS) else OFFICIAL)}
    rows = {
        "image": [{"bytes": content, "path": Path(name).name if named else None} for name, content in files.items()],
        "label": [index[name.split("/")[0]] for name in files],
    }
    label = ClassLabel(names=list(names)) if names else Value("int64")
    Dataset.from_dict(rows, features=Features({"image": Image(), "label": label})).to_parquet(path)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "place",
    ["data/validation-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "val/0000.parquet"],
)
def test_parquet_equals_timm(tmp_path: Path, place: str) -> None:
    files = pictures()
    names = tuple(f"name {wnid}" for wnid in OFFICIAL)  # In class order, as the hub's own has them.
    write_parquet(tmp_path / "imagenet" / place, files, names)
    write_parquet(tmp_path / "imagenet" / place.replace("val/", "train/").replace("validation", "train"), files, names)
    images = read(tmp_path)
    assert labelled(images) == expected(files)
    assert images.names == [Path(name).name for name in files]
    name = f"hfds/{tmp_path / 'imagenet' / ('data' if 'data' in place else '')}"
    assert by_pixels(images) == timms(name, tmp_path / "cache", "validation")


@pytest.mark.usefixtures("hub")
def test_parquet_labels_go_by_wnid(tmp_path: Path) -> None:
    files = pictures()
    write_parquet(tmp_path / "data" / "validation-0.parquet", files, WNIDS[::-1], named=False)
    write(tmp_path, {"README.md": "# A data set\n"})
    images = read(tmp_path)
    assert labelled(images) == expected(files)
    assert images.names[:2] == ["00000000", "00000001"]


@pytest.mark.usefixtures("hub")
def test_parquet_with_bare_indices_and_an_own_list(tmp_path: Path) -> None:
    files = pictures()
    write_parquet(tmp_path / "data" / "validation-0.parquet", files, None)
    assert labelled(read(tmp_path)) == expected(files)
    write(tmp_path, {"synsets.txt": "\n".join(WNIDS)})
    refused(tmp_path, "labels up to 937 for 4 classes")


@pytest.mark.usefixtures("hub")
def test_parquet_that_cannot_be_labelled(tmp_path: Path) -> None:
    files = pictures()
    path = tmp_path / "data" / "validation-0.parquet"
    write_parquet(path, files, (*WNIDS, "cassette player"))
    refused(tmp_path, "5 classes, one of them 'cassette player'", "Name its classes by their ids")
    path.write_bytes(b"PAR1 no more")
    refused(tmp_path, "cannot be read as a Hugging Face data set", "'val'")


@pytest.mark.usefixtures("hub")
def test_parquet_with_other_columns(tmp_path: Path) -> None:
    from datasets import Dataset

    path = tmp_path / "data" / "validation-0.parquet"
    path.parent.mkdir()
    Dataset.from_dict({"picture": [b""], "label": [1]}).to_parquet(path)
    refused(tmp_path, "columns 'image' and 'label'", "Rename the columns")
    Dataset.from_dict({"image": [{"bytes": picture(1), "path": None}], "class": [1]}).to_parquet(path)
    refused(tmp_path, "columns 'image' and 'label'", "Rename the columns")


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", "hfds/nobody/nothing-of-this-name")
    with pytest.raises(DataError, match="nothing-of-this-name cannot be read as a Hugging Face data set"):
        ImageNet().split("val")


@pytest.mark.usefixtures("hub")
def test_workers_read_parquet(tmp_path: Path) -> None:
    files = pictures(each=4)
    write_parquet(tmp_path / "data" / "validation-0.parquet", files, WNIDS)
    images = read(tmp_path)
    images.read(3)
    setup = Setup(preprocessing=DEFAULT, batch_size=3)
    alone, shared = ([*Batches(images, range(len(images)), setup, workers)] for workers in (0, 2))
    assert all((one.images == other.images).all() for one, other in zip(alone, shared, strict=True))
