"""Albums: which items are drawn, where their pictures lie, and what may go wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from harness import album
from harness.album import Album, clear, file_name, pictures, write_page

PICTURE = Image.new("RGB", (3, 2))


@pytest.mark.parametrize(
    "item", ["../../etc/passwd", "/root/x", "a\\b:c*?", "con", "x" * 500, "line\nbreak", "", "Ünï 漢字", "\ud800", "."]
)
def test_no_item_leads_out_of_the_folder(item: str, tmp_path: Path) -> None:
    chosen = Album(tmp_path / "panels", 2)
    chosen.choose([item, "another"])
    chosen.save(item, PICTURE)
    (path,) = pictures(tmp_path / "panels")
    assert path.parent == tmp_path / "panels"
    assert path.name.isascii()
    assert len(path.name) < 100
    assert path.name.startswith("001_")
    assert [found.name for found in tmp_path.iterdir()] == ["panels"]


def test_items_of_equal_letters_have_pictures_of_their_own() -> None:
    assert file_name(1, "a/b") != file_name(2, "a?b")


def test_an_item_is_drawn_once_and_pictures_of_others_go(tmp_path: Path) -> None:
    first = Album(tmp_path, 3)
    first.choose(["a", "b", "c"])
    assert not first.wants("d")
    for item in ("a", "b"):
        first.save(item, PICTURE)
    assert [first.wants(item) for item in "abc"] == [False, False, True]
    assert first.absent() == ["c"]
    after = Album(tmp_path, 2)
    after.choose(["a", "c"])
    assert [path.name for path in pictures(tmp_path)] == ["001_a.png"], "what an interruption left is kept"
    assert after.absent() == ["c"]
    assert after.wants("a"), "what is evaluated again is drawn again"
    assert after.details["panels"]["items"] == ["a", "c"]


def test_without_items_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert Album(tmp_path, 3).details == {}


def test_a_full_disk_costs_the_picture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(album, "write_atomically", full)
    chosen = Album(tmp_path, 1)
    chosen.choose(["a"])
    chosen.save("a", PICTURE)
    assert chosen.details["panels"]["not_written"] == {"a": "No space left on device"}
    assert "The panel of 'a' cannot be written" in capsys.readouterr().err


def test_a_page_shows_every_picture_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "001_a b.png").write_bytes(b"")
    (tmp_path / "002_c.png").write_bytes(b"")
    page = write_page(tmp_path, "<script>alert(1)</script>").read_text()
    assert "<script" not in page
    assert page.index('src="001_a%20b.png"') < page.index('src="002_c.png"')
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_clearing_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    clear(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
