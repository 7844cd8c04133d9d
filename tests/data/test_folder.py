import numpy as np
import pytest

from mapet.data.folder import FolderImages
from mapet.data.sources import open_source
from mapet.errors import DataError, UnreadableImageError
from tests.data.images import png, write_images


def names(source: FolderImages) -> list[str]:
    return [source.describe(index).removeprefix(f"{source.location}/") for index in range(len(source))]


def test_flat_folder_is_sorted_and_skips_what_is_no_image(tmp_path):
    write_images(tmp_path, "b.PNG a.jpeg .hidden.png notes.txt c.TIF")
    source = FolderImages(tmp_path)
    assert names(source) == ["a.jpeg", "b.PNG", "c.TIF"]
    assert source.labels is None
    assert source.classes is None
    assert source.read(0) == png(1)


def test_class_folders_give_labels_also_to_nested_images(tmp_path):
    write_images(tmp_path, "dog/2.png dog/old/1.png cat/1.png .git/x.png cat/.cache/y.png")
    source = FolderImages(tmp_path)
    assert source.classes == ("cat", "dog")
    assert names(source) == ["cat/1.png", "dog/2.png", "dog/old/1.png"]
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 1]


def test_labels_follow_the_classes_of_the_training_images(tmp_path):
    write_images(tmp_path, "dog/1.png")
    source = FolderImages(tmp_path, classes=("cat", "dog"))
    assert source.labels is not None
    assert source.labels.tolist() == [1]
    with pytest.raises(DataError, match=r"class folder 'dog', which the training images lack.*cat, eel"):
        FolderImages(tmp_path, classes=("cat", "eel"))


def test_loose_images_beside_folders_are_one_unlabelled_collection(tmp_path, capsys):
    write_images(tmp_path, "z.png cat/1.png dog/1.png")
    source = FolderImages(tmp_path)
    assert names(source) == ["cat/1.png", "dog/1.png", "z.png"]
    assert source.labels is None
    assert "1 loose images beside folders of images (cat, dog)" in " ".join(capsys.readouterr().err.split())


def test_class_folder_without_images_is_named(tmp_path):
    write_images(tmp_path, "cat/1.png dog/readme.txt")
    with pytest.raises(DataError, match=r"class folder .*dog holds no images but readme\.txt \(1 of 2 .*\.jpg"):
        FolderImages(tmp_path)


@pytest.mark.parametrize("inside", ["", "notes.txt", "cat/notes.txt dog/notes.txt", ".hidden.png"])
def test_folder_without_images(tmp_path, inside):
    write_images(tmp_path, inside)
    with pytest.raises(DataError, match=r"holds no images: nothing in it or below it ends in .*\.png"):
        FolderImages(tmp_path)


def test_links_are_followed_but_not_for_ever(tmp_path):
    write_images(tmp_path / "real", "1.png")
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "cat" / "linked").symlink_to(tmp_path / "real")
    write_images(tmp_path / "data", "dog/1.png")
    assert names(FolderImages(tmp_path / "data")) == ["cat/linked/1.png", "dog/1.png"]


def test_links_that_lead_nowhere_are_unreadable_images(tmp_path):
    write_images(tmp_path, "flat/a.png classes/cat/1.png classes/dog/1.png")
    for folder in (tmp_path / "flat", tmp_path / "classes" / "dog"):
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "lost.png").symlink_to("nowhere.png")
        (folder / "folder.png").mkdir()
    (tmp_path / "classes" / "dog" / "folder.png").rmdir()
    (tmp_path / "flat" / "circle").symlink_to("circle")
    for root, inside in ((tmp_path / "flat", ["a.png", "loop.png", "lost.png"]), (tmp_path / "classes", None)):
        source = FolderImages(root)
        assert names(source)[-2:] == [f"{'dog/' if inside is None else ''}{name}.png" for name in ("loop", "lost")]
        assert inside is None or names(source) == inside
        for index in range(len(source) - 2, len(source)):
            with pytest.raises(UnreadableImageError, match=r"cannot be opened: (Too many levels of symbolic links|No such file)"):
                source.read(index)


def test_vanished_file_is_unreadable(tmp_path):
    write_images(tmp_path, "a.png b.png")
    source = FolderImages(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableImageError, match="cannot be opened: No such file"):
        source.read(0)


def test_images_with_masks_are_no_classes(tmp_path):
    parts = [f"{kind}/{part}" for kind in ("images", "annotations") for part in ("train", "val")]
    write_images(tmp_path, " ".join(f"{part}/{n}.png" for part in parts for n in "12"))
    with pytest.raises(DataError, match=r"masks, not classes\. Use `mapet evaluate segment` for it, give images/ alone"):
        open_source(tmp_path, "all")
    assert len(open_source(tmp_path / "images", "all")) == 4
