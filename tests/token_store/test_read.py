from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mapet.data.folder import FolderImages
from mapet.data.regions import FixedCrop
from mapet.data.skipped import UnreadableImages
from mapet.data.source import sample_key, subset, with_keys
from mapet.errors import StorageError, TokenStoreError, UnreadableImageError
from mapet.runtime.files import sha256
from mapet.token_store.build import build_store
from mapet.token_store.format import write_header
from mapet.token_store.read import TokenStore
from tests.token_store.planted import CountingTokenizer, build, change_one_pixel, expected_ids, images_of, write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 12)


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> TokenStore:
    return build(folder, tmp_path / "store")


def rewrite_header(store: TokenStore, **changes) -> None:
    header = store.path / "header.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | changes))


def test_lookup_gives_the_tokens_of_each_image_in_any_order_and_repeated(folder: Path, store: TokenStore) -> None:
    files = [folder / f"{number:04d}.png" for number in (7, 0, 11, 7)]
    found = store.lookup([sample_key(file.read_bytes()) for file in files])
    assert found.dtype == torch.int64
    assert np.array_equal(found, np.stack([expected_ids(file, CountingTokenizer()) for file in files]))


def test_keys_are_text_bytes_or_arrays_of_them(store: TokenStore) -> None:
    texts = [key.decode() for key in store.keys.tolist()]
    expected = torch.from_numpy(store.ids.astype(np.int64))
    for keys in (store.keys, store.keys.astype("U"), texts, tuple(texts), store.keys.tolist()):
        assert torch.equal(store.lookup(keys), expected)
        assert store.contains(keys).all()
    assert store.keys[3] in store
    assert store.lookup(store.keys[:0]).shape == (0, 2, 2)
    with pytest.raises(TokenStoreError, match=r"no tokens for 1 of 2 requested images .*sample keys f{32}\)"):
        store.lookup(np.array([texts[0], "f" * 32], "S32"))


def test_opens_with_what_it_was_built_with(store: TokenStore) -> None:
    opened = TokenStore.open(str(store.path), verify=True)
    tokenizer = CountingTokenizer()
    assert (len(opened), opened.vocab_size, opened.grid_size) == (12, 50, (2, 2))
    assert opened.tokenizer_fingerprint == tokenizer.fingerprint
    assert opened.ids.dtype == np.uint16
    assert isinstance(opened.ids, np.memmap)
    assert opened.keys.tolist() == sorted(set(opened.keys.tolist()))
    opened.check(tokenizer.fingerprint, FixedCrop().describe(), (2, 2), 50)


def test_large_vocabularies_are_stored_in_32_bits(folder: Path, tmp_path: Path) -> None:
    tokenizer = CountingTokenizer(vocab_size=120_000)
    store = build(folder, tmp_path / "large", tokenizer)
    assert store.ids.dtype == np.int32
    files = sorted(folder.iterdir())[:4]
    found = store.lookup([sample_key(file.read_bytes()) for file in files])
    assert np.array_equal(found, np.stack([expected_ids(file, tokenizer) for file in files]))
    assert found.max() > 65_535


def test_unknown_keys_are_refused(store: TokenStore) -> None:
    known = store.keys[0].decode()
    for unknown in ("0" * 32, known + "00", known[:-1], "", "ü" * 32, "\udcff" * 32, "f" * 32):
        assert unknown not in store
        with pytest.raises(TokenStoreError, match=r"no tokens for 1 of 2 requested images .*mapet tokenize"):
            store.lookup([known, unknown])
    assert known in store
    assert store.lookup([]).shape == (0, 2, 2)


@pytest.mark.parametrize("name", ["ids.npy", "keys.npy"])
@pytest.mark.parametrize("size", [0, 40, 130, -1])
def test_truncated_arrays_are_refused(store: TokenStore, name: str, size: int) -> None:
    file = store.path / name
    content = file.read_bytes()
    file.write_bytes(content[:size])
    with pytest.raises(TokenStoreError, match=rf"damaged: {name} is truncated .*build it again"):
        TokenStore.open(store.path)


@pytest.mark.parametrize("name", ["ids.npy", "keys.npy"])
def test_missing_longer_or_exchanged_arrays_are_refused(store: TokenStore, name: str) -> None:
    file = store.path / name
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    with pytest.raises(TokenStoreError, match=f"{name} is 1 bytes longer"):
        TokenStore.open(store.path)
    with file.open("wb") as opened:
        np.savez(opened, content)
    with pytest.raises(TokenStoreError, match=f"damaged: {name} holds NpzFile"):
        TokenStore.open(store.path)
    np.save(file, np.zeros((12, 3, 3), np.uint16))
    with pytest.raises(TokenStoreError, match=rf"damaged: {name} holds \(12, 3, 3\) uint16"):
        TokenStore.open(store.path)
    file.unlink()
    with pytest.raises(TokenStoreError, match=f"damaged: {name} is missing"):
        TokenStore.open(store.path)


@pytest.mark.parametrize("name", ["ids.npy", "keys.npy"])
def test_f5_a_flipped_bit_is_found(store: TokenStore, name: str) -> None:
    TokenStore.open(store.path)  # found right before, and changed since
    content = bytearray((store.path / name).read_bytes())
    content[-1] ^= 1
    (store.path / name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(TokenStoreError, match=f"damaged: {name} has the SHA-256"):
            TokenStore.open(store.path)
    TokenStore.open(store.path, verify=False)


def test_f5_a_changed_file_of_the_same_size_and_time_is_read_again(store: TokenStore) -> None:
    TokenStore.open(store.path)
    file = store.path / "ids.npy"
    before = file.stat()
    with file.open("r+b") as content:
        content.seek(-1, os.SEEK_END)
        content.write(b"\x01")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TokenStoreError, match="has the SHA-256"):
        TokenStore.open(store.path)


def test_f5_an_unchanged_store_is_read_once(store: TokenStore, monkeypatch) -> None:
    read = []
    monkeypatch.setattr("mapet.token_store.content.sha256", lambda path: read.append(path.name) or sha256(path))
    TokenStore.open(store.path)
    TokenStore.open(store.path)
    assert sorted(read) == ["ids.npy", "keys.npy"]
    copy = shutil.copytree(store.path, store.path.with_name("copy"))
    TokenStore.open(copy)
    assert len(read) == 4


def test_f5_a_store_where_nothing_can_be_written_is_read_each_time(store: TokenStore, monkeypatch) -> None:
    def refuse(path: Path, value: object) -> None:
        raise StorageError(f"Cannot write {path}")

    monkeypatch.setattr("mapet.token_store.content.write_json", refuse)
    TokenStore.open(store.path)
    TokenStore.open(store.path)
    assert not (store.path / ".verified.json").exists()


def rewritten(store: TokenStore, keys: np.ndarray, ids: np.ndarray, vocab_size: int = 50) -> Path:
    """A store whose header and checksums belong to these arrays."""
    np.save(store.path / "keys.npy", keys)
    np.save(store.path / "ids.npy", ids)
    write_header(store.path, replace(store.header.space, vocab_size=vocab_size), len(keys), {})
    return store.path


@pytest.mark.parametrize(("vocab_size", "wrong"), [(50, 50), (50, 65_535), (70_000, -1), (70_000, 70_000)])
def test_f16_ids_beyond_the_vocabulary_are_refused(store: TokenStore, vocab_size: int, wrong: int) -> None:
    ids = np.array(store.ids).astype(np.uint16 if vocab_size <= 65_536 else np.int32)
    ids[7, 1, 0] = wrong
    path = rewritten(store, np.array(store.keys), ids, vocab_size)
    with pytest.raises(TokenStoreError, match=rf"damaged: ids\.npy holds the id {wrong}, .* 0 to {vocab_size - 1}.*build it again"):
        TokenStore.open(path)


@pytest.mark.parametrize("order", [[0, 1, 1, 3], [3, 2, 1, 0]], ids=["twice", "reversed"])
def test_f5_keys_twice_or_out_of_order_are_refused(store: TokenStore, order: list[int]) -> None:
    path = rewritten(store, store.keys[order], store.ids[order])
    with pytest.raises(TokenStoreError, match=r"damaged: keys\.npy holds keys twice, or not in ascending order"):
        TokenStore.open(path)


def test_f5_reversed_rows_are_refused(store: TokenStore) -> None:
    np.save(store.path / "ids.npy", np.array(store.ids[::-1]))
    with pytest.raises(TokenStoreError, match=r"ids\.npy has the SHA-256"):
        TokenStore.open(store.path)


def test_f5_every_garbled_header_is_refused(store: TokenStore) -> None:
    content = (store.path / "header.json").read_bytes()
    for place in range(0, len(content), 7):
        (store.path / "header.json").write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        with pytest.raises(TokenStoreError):
            TokenStore.open(store.path)
        (store.path / "header.json").write_bytes(content[:place])
        with pytest.raises(TokenStoreError):
            TokenStore.open(store.path)


@pytest.mark.parametrize(
    "change",
    [{"rows": -1}, {"rows": 1e400}, {"vocab_size": 0}, {"vocab_size": 10**12}, {"grid_size": [0, 2]}, {"grid_size": [-2, -2]}],
    ids=str,
)
def test_f5_sizes_that_no_store_has_are_refused(store: TokenStore, change: dict) -> None:
    header = json.loads((store.path / "header.json").read_text())
    del header["own_sha256"]
    space = header["space"] | {name: value for name, value in change.items() if name in header["space"]}
    rows = {name: value for name, value in change.items() if name == "rows"}
    (store.path / "header.json").write_text(json.dumps(header | {"space": space} | rows))
    with pytest.raises(TokenStoreError, match=r"damaged: header\.json lacks or garbles"):
        TokenStore.open(store.path)


def test_other_versions_and_foreign_folders_are_refused(store: TokenStore, tmp_path: Path) -> None:
    rewrite_header(store, version=1)
    with pytest.raises(TokenStoreError, match=r"format version 1; this mapet reads version 2.*mapet tokenize"):
        TokenStore.open(store.path)
    rewrite_header(store, version=2, format="something else")
    with pytest.raises(TokenStoreError, match="belongs to something else"):
        TokenStore.open(store.path)
    with pytest.raises(TokenStoreError, match=r"has no header\.json"):
        TokenStore.open(tmp_path / "images")
    with pytest.raises(TokenStoreError, match=r"There is no token store at .*nowhere"):
        TokenStore.open(tmp_path / "nowhere")
    with pytest.raises(TokenStoreError, match="is not a token store"):
        TokenStore.open(tmp_path / "images" / "0000.png")


@pytest.mark.parametrize("content", ["", "{", "\udcff", "[1]", "null"])
def test_garbled_headers_are_refused(store: TokenStore, content: str) -> None:
    (store.path / "header.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(TokenStoreError, match=r"damaged|belongs to something else"):
        TokenStore.open(store.path)


@pytest.mark.parametrize(
    "change",
    [{"space": {}}, {"space": None}, {"rows": "many"}, {"rows": "9"}, {"rows": True}, {"unreadable": 3}, {"sha256": {}}],
)
def test_incomplete_headers_are_refused(store: TokenStore, change: dict) -> None:
    rewrite_header(store, **change)
    with pytest.raises(TokenStoreError, match=r"damaged: header\.json"):
        TokenStore.open(store.path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("rows",), "12"),
        (("rows",), True),
        (("space", "vocab_size"), "50"),
        (("space", "vocab_size"), 50.0),
        (("space", "grid_size"), ["2", "2"]),
        (("space", "tokenizer_fingerprint"), 7),
        (("space", "tokenizer"), [["kind", "x"]]),
    ],
)
def test_f17_values_in_headers_have_their_own_type(store: TokenStore, place: tuple[str, ...], value: object) -> None:
    """Also in headers of earlier releases, which have no checksum of their own."""
    header = store.path / "header.json"
    content = json.loads(header.read_text())
    content.pop("own_sha256")
    header.write_text(json.dumps(content))
    TokenStore.open(store.path)
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    header.write_text(json.dumps(content))
    with pytest.raises(TokenStoreError, match=r"damaged: header\.json lacks or garbles"):
        TokenStore.open(store.path)


def test_check_names_both_sides(store: TokenStore) -> None:
    other = CountingTokenizer(seed=1).fingerprint
    with pytest.raises(TokenStoreError, match=rf"{store.tokenizer_fingerprint[:12]} \(kind.*random_projection.*{other[:12]}"):
        store.check(tokenizer_fingerprint=other)
    with pytest.raises(TokenStoreError, match=r'name "fixed".*name "squeezed".*mapet tokenize'):
        store.check(view={"name": "squeezed"})
    with pytest.raises(TokenStoreError, match=r"2 x 2 tokens an image, but the backbone makes 4 x 4 patches"):
        store.check(grid_size=(4, 4))
    with pytest.raises(TokenStoreError, match=r"vocabulary of 50 codes, but 8192 are set"):
        store.check(vocab_size=8192)
    store.check(grid_size=(2, 2))


def test_match_follows_content_through_names_order_and_times(folder: Path, store: TokenStore, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in folder.iterdir():
        shutil.copyfile(file, moved / f"{sample_key(file.name.encode())}.png")
        os.utime(moved / f"{sample_key(file.name.encode())}.png", (0, 0))
    assert store.match(images_of(moved)) == list(range(12))
    assert store.match(subset(images_of(folder), [5, 3, 3])) == [0, 1, 2]


def test_match_reads_nothing_where_the_keys_are_known(folder: Path, store: TokenStore) -> None:
    source = with_keys(images_of(folder))
    shutil.rmtree(folder)
    assert store.match(subset(source, range(3, 8))) == [0, 1, 2, 3, 4]


def test_match_refuses_changed_and_new_images_by_name(folder: Path, store: TokenStore) -> None:
    change_one_pixel(folder / "0004.png")
    with pytest.raises(TokenStoreError, match=r"1 of the 12 images in .* changed or are new .*0004\.png\. .*mapet tokenize"):
        store.match(images_of(folder))
    write_images(folder, 4, first=100)
    with pytest.raises(TokenStoreError, match=r"5 of the 16 .*0004\.png, .*0100\.png, .*0101\.png and 2 more"):
        store.match(images_of(folder))


def test_match_leaves_out_what_was_recorded_as_unreadable(folder: Path, tmp_path: Path) -> None:
    (folder / "0002.png").write_bytes(b"no image at all")
    store = build(folder, tmp_path / "partial", limit=1)
    assert next(iter(store.unreadable.values())).startswith(str(folder / "0002.png"))
    assert store.match(images_of(folder)) == [0, 1, *range(3, 12)]
    with pytest.raises(TokenStoreError, match="None of the 1 images"):
        store.match(subset(images_of(folder), [2]))
    (folder / "0003.png").write_bytes(b"no image either")
    with pytest.raises(TokenStoreError, match=r"1 of the 12 .*0003\.png"):
        store.match(images_of(folder))


def test_images_without_any_content_are_known_by_name(folder: Path, tmp_path: Path) -> None:
    class WithoutContent(FolderImages):
        missing = "0002.png"

        def read(self, index: int) -> bytes:
            if self.describe(index).endswith(self.missing):
                raise UnreadableImageError("there is nothing in it")
            return super().read(index)

    source = WithoutContent(folder)
    store = build_store(source, CountingTokenizer(), tmp_path / "partial", unreadable=UnreadableImages(1))
    assert store.match(source) == [0, 1, *range(3, 12)]
    source.missing = "0003.png"
    with pytest.raises(TokenStoreError, match=r"2 of the 12 .*0002\.png, .*0003\.png"):
        store.match(source)
