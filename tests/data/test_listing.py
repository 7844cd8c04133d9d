import pytest

from mapet.data.listing import ListedImages
from mapet.errors import DataError, UnreadableImageError
from tests.data.images import png, write_images


@pytest.mark.parametrize("column", ["path", "file", "image"])
def test_paths_are_relative_to_the_listing(tmp_path, column):
    write_images(tmp_path / "photos", "b.png a,c.png")
    listing = tmp_path / "images.csv"
    listing.write_text(f'\ufeff{column}, label,note\r\nphotos/b.png,1,x\r\n"photos/a,c.png", 0,\r\n{tmp_path}/photos/b.png,1\r\n')
    source = ListedImages(listing)
    assert [source.read(index) for index in range(3)] == [png(0), png(1), png(0)]
    assert source.describe(1) == str(tmp_path / "photos" / "a,c.png")
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes, source.location) == ([1, 0, 1], None, str(listing))
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert ListedImages(listing).classes == ("cat", "dog")


def test_without_labels_and_with_a_missing_file(tmp_path):
    (tmp_path / "images.csv").write_text("file\nno.png\n")
    source = ListedImages(tmp_path / "images.csv")
    assert source.labels is source.classes is None
    with pytest.raises(UnreadableImageError, match="cannot be opened: No such file"):
        source.read(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has no column of paths: its first line must name one of path, file, image, comma-separated; found nothing"),
        (b"name;label\na.png;1\n", r"found name;label\."),
        (b"label,path\n1,a.png\n2,\n", r"must name an image file in every row below the first line; row 2 has no path"),
        (b"path\n", r"it has no rows"),
        (b"path,label\na.png,cat\nb.png,\n", r"b\.png has no label \(-1\)"),
        (b"path\ncaf\xe9.png\n", r"cannot be read as CSV in UTF-8: .*Save it as comma-separated UTF-8 text"),
        (b"path\n" + b"a" * 200_000, r"cannot be read as CSV in UTF-8: field larger"),
    ],
)
def test_listings_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "images.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        ListedImages(tmp_path / "images.csv")


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("path,label,class", "labels are those of the column 'label'; not used: class."),
        ("path,Label,target,y", "labels are those of the column 'label'; not used: target, y."),
        ("path,category", "no column holds labels by its name ('label'); not used: category. Rename the one that is meant."),
        ("path,label,width", ""),
        ("path,width", ""),
    ],
)
def test_columns_that_could_be_labels_are_named(tmp_path, capsys, head, line):
    """R7: whether another column is used, or none."""
    cells = head.count(",")
    (tmp_path / "a.csv").write_text(f"{head}\na.png{',1' * cells}\nb.png{',2' * cells}\n")
    ListedImages(tmp_path / "a.csv")
    said = capsys.readouterr().err
    assert (line in said and str(tmp_path / "a.csv") in said) if line else not said
