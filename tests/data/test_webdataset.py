import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from rich.console import Console

from mapet.data import tar_index
from mapet.data.webdataset import TarImages
from mapet.errors import DataError, UnreadableImageError
from tests.data.containers import write_tar
from tests.data.images import png


def names(source: TarImages) -> list[str]:
    return [source.describe(index) for index in range(len(source))]


def contents(source: TarImages) -> list[bytes]:
    return [source.read(index) for index in range(len(source))]


def labels(source: TarImages) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()


def three_images(path: Path, **options) -> Path:
    return write_tar(path, [(f"{number}.png", png(number)) for number in range(3)], **options)


def test_samples_of_several_tars_in_order(tmp_path, capfd):
    first = write_tar(
        tmp_path / "a-0.tar",
        [
            ("x/1.cls", b"1\n"),
            ("x/1.jpg", b"one"),
            ("x/1.mask.png", b"mask"),
            ("x/1.txt", b"a dog"),
            ("2.JPEG", b"two"),
            ("2.cls", b"0"),
        ],
    )
    second = write_tar(tmp_path / "a-1.tar", [("2.cls", b" 1"), ("2.json", b'{"label": 0}'), ("2.webp", b"")])
    source = TarImages([first, second])
    assert names(source) == ["a-0.tar: x/1.jpg", "a-0.tar: 2.JPEG", "a-1.tar: 2.webp"]
    assert contents(source) == [b"one", b"two", b""]
    assert labels(source) == [1, 0, 1]
    assert source.classes is None
    (tmp_path / "classes.txt").write_text("cat\ndog")
    assert TarImages([first, second]).classes == ("cat", "dog")
    out, err = capfd.readouterr()
    assert (out, err.splitlines()) == ("", [f"{first}: 1 files in its tars are not used (x/1.mask.png)."] * 2)


def test_what_is_no_sample_is_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("photos")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("photos/._1.png", "photos/.hidden.png", "photos/notes.txt", "meta.json", "photos/1.png"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    source = TarImages([path])
    assert names(source) == ["a.tar: photos/1.png"]
    assert source.labels is None
    assert source.classes is None


def test_dots_in_names_of_photos_do_not_matter(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [("IMG.2020.01.jpg", b"a"), ("IMG.2020.02.jpg", b"b"), ("z", b""), ("IMG.2020.03.jpg", b"c")]
    )
    assert contents(TarImages([path])) == [b"a", b"b", b"c"]


def test_names_that_repeat_are_told_apart_by_their_folders(tmp_path):
    files = [three_images(tmp_path / folder / "a.tar") for folder in "xy"]
    assert names(TarImages(files))[2:4] == [f"{files[0]}: 2.png", f"{files[1]}: 0.png"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names(tmp_path, form):
    odd = ["a" * 300 + "/" + "b" * 90 + ".png", "caf\u00e9.png", os.fsdecode(b"caf\xe9.png"), "c.png"]
    path = write_tar(tmp_path / "a.tar", [(name, png(seed)) for seed, name in enumerate(odd)], format=form)
    source = TarImages([path])
    assert names(source) == [f"a.tar: {name}" for name in odd]
    assert contents(source) == [png(seed) for seed in range(4)]


@pytest.mark.parametrize("label", [b'{"label": 1}', b'{"label": "1"}', b'{"label": "dog"}'])
def test_labels_in_json(tmp_path, label):
    members = [("0.png", b"a"), ("0.json", label.replace(b"1", b"0").replace(b"dog", b"cat")), ("1.json", label), ("1.png", b"b")]
    source = TarImages([write_tar(tmp_path / "a.tar", members)])
    assert labels(source) == [0, 1]
    assert source.classes == (("cat", "dog") if b"dog" in label else None)


@pytest.mark.parametrize("facts", [b"{}", b'{"label": null, "id": 3}', b"[1]", b"3"])
def test_json_without_a_label(tmp_path, facts):
    assert TarImages([write_tar(tmp_path / "a.tar", [("0.json", facts), ("0.png", b"a")])]).labels is None


def test_names_of_classes_are_those_of_the_training_part(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.cls", b"dog"), ("0.png", b"a")])
    source = TarImages([path], classes=("cat", "dog"))
    assert (labels(source), source.classes) == ([1], ("cat", "dog"))
    (tmp_path / "labels.txt").write_text("dog\ncat")
    assert labels(TarImages([path])) == [0]
    assert labels(TarImages([path], classes=("cat", "dog"))) == [1]
    with pytest.raises(DataError, match=r"a\.tar: 0\.png is labelled 'dog', which is none of the 1 classes known \(eel\)"):
        TarImages([path], classes=("eel",))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("0.png 0.jpg", r"holds two images for the sample '0': 0\.png and 0\.jpg\..*0\.mask\.png"),
        ("0.png 1.png 0.png", r"holds the sample '0' twice: as 0\.png and further on as 0\.png.*--sort=name"),
        ("0.png 1.png 0.jpg", r"holds the sample '0' twice: as 0\.png and further on as 0\.jpg"),
        ("0.png 0.png", r"holds the sample '0' twice: as 0\.png and further on as 0\.png"),
        ("0.cls 0.cls 0.png", r"holds the sample '0' twice: as 0\.cls"),
        ("a.b.png c.png a.b.png", r"holds the sample 'a\.b\.png' twice"),
        ("0.cls 1.png 0.png", r"holds a label for '0' without an image beside it.*--sort=name"),
        ("0.png 1.png 0.cls", r"holds a label for '0' without an image beside it"),
        ("0.cls 0.png 1.png", r"a\.tar: 1\.png has no label \(-1\)"),
        ("0.txt a.tar", r"holds no images: no file in its tars ends in .*\.png.*Tars within a tar"),
        ("", r"holds no images"),
    ],
)
def test_members_that_are_no_samples(tmp_path, members, message):
    path = write_tar(tmp_path / "a.tar", [(name, b"0") for name in members.split()])
    with pytest.raises(DataError, match=message):
        TarImages([path])


def test_labels_in_json_that_lie_elsewhere_are_not_lost(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.png", b"a"), ("1.png", b"b"), ("0.json", b'{"label": 1}')])
    with pytest.raises(DataError, match="holds a label for '0' without an image beside it"):
        TarImages([path])


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("0.json", b'{"label": ', r"label in 0\.json cannot be read: .*Pack it again"),
        ("0.json", b"\xff\xfe", r"label in 0\.json cannot be read"),
        ("0.cls", b"\xff\xfe", r"label in 0\.cls cannot be read"),
        ("0.json", b'{"label": [1, 2]}', r"0\.json has the label \[1, 2\]; a class number or a class name is allowed"),
        ("0.json", b'{"label": 0.5}', r"0\.json has the label 0\.5"),
        ("0.json", b'{"label": true}', r"0\.json has the label True"),
        ("0.cls", b"-7", r"a\.tar: 0\.png has the label -7; allowed: 0 or more"),
    ],
)
def test_labels_that_are_none(tmp_path, name, label, message):
    with pytest.raises(DataError, match=message):
        TarImages([write_tar(tmp_path / "a.tar", [(name, label), ("0.png", b"a")])])


def test_a_tar_cut_anywhere_is_refused_or_whole(tmp_path):
    path = three_images(tmp_path / "a.tar")
    whole = path.read_bytes()
    last = max(end for end in range(0, len(whole), 512) if any(whole[end - 512 : end]))
    refused = 0
    for end in [*range(0, last + 1, 97), *range(0, last + 1, 512), last - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.tar is damaged, cut short, or no tar: .*Fetch or pack it again"):
            TarImages([path])
        refused += 1
    assert refused > 20
    for end in (last + 1, last + 512, last + 600, len(whole)):
        path.write_bytes(whole[:end])
        assert len(TarImages([path])) == 3, "only the padding behind the images is cut"


@pytest.mark.parametrize("member", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 50, 126, 150, 156, 258])
def test_a_damaged_header_is_not_the_end(tmp_path, member, place):
    path = three_images(tmp_path / "a.tar")
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        content[tar.getmembers()[member].offset + place] ^= 0x15
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged, cut short, or no tar"):
        TarImages([path])


def test_what_lies_behind_the_end_is_not_lost(tmp_path):
    first, second = (three_images(tmp_path / name) for name in ("a.tar", "b.tar"))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match="something follows the mark at its end; if tars were joined, use `tar --concatenate`"):
        TarImages([first])


def test_negative_sizes_do_not_lead_in_circles(tmp_path):
    for size in (-1, -512, -1024, -4096):
        member = tarfile.TarInfo("0.png")
        member.size = size
        header = member.tobuf(tarfile.GNU_FORMAT)
        path = tmp_path / "a.tar"
        path.write_bytes(three_images(path).read_bytes()[:-10240] + header + bytes(10240))
        with pytest.raises(DataError, match="is damaged"):
            TarImages([path])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar"])
def test_compressed_tars_are_refused_with_a_way_out(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(three_images(tmp_path / "whole.tar").read_bytes()))
    with pytest.raises(DataError, match=r"is compressed\. .*Unpack it once, for example with `gunzip`"):
        TarImages([path])


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = kind, "a.png"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"holds b\.png as a link to a\.png, .*--dereference --hard-dereference"):
        TarImages([path])


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_files_are_refused(tmp_path, form):
    program = shutil.which("tar")
    if program is None or b"GNU tar" not in subprocess.run([program, "--version"], capture_output=True).stdout:
        pytest.skip("there is no GNU tar here, and tarfile writes no sparse files")
    with (tmp_path / "a.png").open("wb") as file:
        file.write(b"start")
        file.seek(2**20)
        file.write(b"end")
    subprocess.run([program, f"--format={form}", "--sparse", "-cf", "a.tar", "a.png"], cwd=tmp_path, check=True)
    with pytest.raises(DataError, match=r"holds a\.png as a sparse file\. Pack it without --sparse"):
        TarImages([tmp_path / "a.tar"])


def test_a_tar_that_changed_gives_no_wrong_images(tmp_path):
    path = three_images(tmp_path / "a.tar")
    source = TarImages([path])
    size = path.stat().st_size
    write_tar(path, [(f"{number}.png", png(number + 7)) for number in range(3)])
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size, "else its time would not matter"
    with pytest.raises(UnreadableImageError, match="its tar was changed since this command began; start the command again"):
        source.read(1)
    path.unlink()
    with pytest.raises(UnreadableImageError, match="its tar cannot be opened: No such file"):
        source.read(1)


def test_a_read_that_ends_early_is_no_image(tmp_path, monkeypatch):
    source = TarImages([three_images(tmp_path / "a.tar")])
    monkeypatch.setattr("os.pread", lambda *_: b"abc")
    with pytest.raises(UnreadableImageError, match=rf"its tar ends after 3 of its {len(png(1))} bytes"):
        source.read(1)


def test_no_file_stays_open(tmp_path):
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("only Linux says which files are open")
    source = TarImages([three_images(tmp_path / "a.tar")])
    contents(source)
    assert not [link for link in descriptors.iterdir() if link.is_symlink() and link.readlink().suffix == ".tar"]


def test_memory_is_not_filled_with_members(tmp_path):
    count = 2000
    path = write_tar(tmp_path / "a.tar", [(f"{number}.png", b"") for number in range(count)])
    tracemalloc.start()
    source = TarImages([path])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == count
    assert most < 500 * count, "a TarInfo alone takes more"


def test_progress_is_shown_where_it_takes_time(tmp_path, monkeypatch):
    path = three_images(tmp_path / "a.tar")
    for silent_seconds, shown in ((-1.0, True), (60.0, False)):
        screen = Console(file=io.StringIO(), force_terminal=True)
        monkeypatch.setattr("mapet.runtime.progress.console", screen)
        monkeypatch.setattr(tar_index, "SILENT_SECONDS", silent_seconds)
        TarImages([path])
        assert ("Indexing tar files" in screen.file.getvalue()) is shown
