"""What goes wrong with images and stored tokens between two commands: each fault is noticed, and what is no fault is not."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mapet.data.regions import FixedCrop, RandomCrops, Regions
from mapet.data.skipped import UnreadableImages
from mapet.errors import MapetError, TokenStoreError
from mapet.token_store.read import TokenStore
from mapet.token_store.verify import verify_store
from tests.token_store.planted import CountingTokenizer, build, change_one_pixel, contents, images_of, write_images

CROPS = RandomCrops(3, (0.25, 0.9), seed=2)


@pytest.fixture(params=[FixedCrop(), CROPS], ids=["fixed", "stored"])
def regions(request: pytest.FixtureRequest) -> Regions:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 15, size=(12, 17))


@pytest.fixture
def store(folder: Path, tmp_path: Path, regions: Regions) -> TokenStore:
    return build(folder, tmp_path / "store", regions=regions)


def use(path: Path, folder: Path, regions: Regions, tokenizer: CountingTokenizer | None = None) -> None:
    """What `mapet pretrain` looks at before it starts, and `mapet tokenize --verify` in addition."""
    tokenizer = tokenizer or CountingTokenizer()
    store = TokenStore.open(path)
    store.check(tokenizer.fingerprint, regions.describe(), tokenizer.grid_size, tokenizer.vocab_size)
    source = images_of(folder)
    assert store.match(source) == list(range(15))
    store = TokenStore.open(path, verify=True)
    verification = verify_store(store, source, tokenizer, 1000, unreadable=UnreadableImages())
    assert verification.crops == 15 * (store.num_views or 1)
    assert verification.differences == []


def shuffle(folder: Path) -> None:
    """Every name gets the content of another file."""
    files = sorted(folder.iterdir())
    read = [file.read_bytes() for file in files]
    random.Random(0).shuffle(read)
    for file, content in zip(files, read, strict=True):
        file.write_bytes(content)


def touch(folder: Path) -> None:
    for age, file in enumerate(folder.iterdir()):
        os.utime(file, (age, age))


def rename(folder: Path) -> None:
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"{99 - number}.png")


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize("change", [nothing, shuffle, touch, rename])
def test_what_is_no_fault_works(store: TokenStore, folder: Path, regions: Regions, change: Callable[[Path], None]) -> None:
    change(folder)
    use(store.path, folder, regions)
    tokenizer = CountingTokenizer()
    build(folder, store.path, tokenizer, regions=regions)
    assert tokenizer.images == 0


def one_pixel(folder: Path, store: Path) -> None:
    change_one_pixel(folder / "0004.png")


def new_image(folder: Path, store: Path) -> None:
    shutil.copyfile(write_images(folder.parent / "more", 1, first=70) / "0070.png", folder / "new.png")


def exchanged_image(folder: Path, store: Path) -> None:
    shutil.move(write_images(folder.parent / "more", 1, first=70) / "0070.png", folder / "0007.png")


def truncated_ids(folder: Path, store: Path) -> None:
    os.truncate(store / "ids.npy", (store / "ids.npy").stat().st_size // 2)


def truncated_keys(folder: Path, store: Path) -> None:
    os.truncate(store / "keys.npy", 300)


def truncated_header(folder: Path, store: Path) -> None:
    os.truncate(store / "header.json", 300)


def missing_ids(folder: Path, store: Path) -> None:
    (store / "ids.npy").unlink()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def flipped_ids(folder: Path, store: Path) -> None:
    flip_a_byte(store / "ids.npy")


def flipped_keys(folder: Path, store: Path) -> None:
    flip_a_byte(store / "keys.npy")


def older_format(folder: Path, store: Path) -> None:
    header = json.loads((store / "header.json").read_text())
    (store / "header.json").write_text(json.dumps(header | {"version": 1}))


def shifted_rows(folder: Path, store: Path) -> None:
    """Tokens beside the wrong keys, with checksums that say all is well."""
    from mapet.token_store.format import write_header

    opened = TokenStore.open(store)
    np.save(store / "ids.npy", np.roll(np.array(opened.ids), 1, axis=0))
    write_header(store, opened.header.space, len(opened), {})


FAULTS = {
    one_pixel: r"1 of the 15 images in .* changed or are new .*0004\.png.*mapet tokenize .*images --tokenizer TOK",
    new_image: r"1 of the 16 images in .* changed or are new .*new\.png.*mapet tokenize",
    exchanged_image: r"1 of the 15 images in .* changed or are new .*0007\.png.*mapet tokenize",
    truncated_ids: r"damaged: ids\.npy is truncated.*mapet tokenize",
    truncated_keys: r"damaged: keys\.npy is truncated.*mapet tokenize",
    truncated_header: r"damaged: header\.json cannot be read.*mapet tokenize",
    missing_ids: r"damaged: ids\.npy is missing.*mapet tokenize",
    flipped_ids: r"damaged: ids\.npy has the SHA-256.*mapet tokenize",
    flipped_keys: r"changed or are new|damaged: keys\.npy has the SHA-256",
    older_format: r"has format version 1; this mapet reads version 2\. Build it again.*mapet tokenize",
    shifted_rows: r"\d\.png, view [0-2]: [1-4] of 4 tokens differ",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_refused_in_words(store: TokenStore, folder: Path, regions: Regions, fault: Callable) -> None:
    use(store.path, folder, regions)
    fault(folder, store.path)
    if fault is shifted_rows:
        found = verify_store(
            TokenStore.open(store.path, verify=True), images_of(folder), CountingTokenizer(), 1000, unreadable=UnreadableImages()
        )
        with pytest.raises(MapetError, match=FAULTS[fault]):
            found.require()
        return
    with pytest.raises(TokenStoreError, match=FAULTS[fault]):
        use(store.path, folder, regions)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault is not shifted_rows], ids=lambda fault: fault.__name__)
def test_the_command_that_is_named_repairs_it(
    store: TokenStore, folder: Path, regions: Regions, tmp_path: Path, fault: Callable
) -> None:
    fault(folder, store.path)
    repaired = build(folder, store.path, regions=regions)
    fresh = contents(build(folder, tmp_path / "fresh", regions=regions))
    assert contents(repaired) | fresh == contents(repaired)
    assert repaired.match(images_of(folder)) == list(range(len(images_of(folder))))


def test_another_crop_setting_and_another_tokenizer_are_refused(store: TokenStore, folder: Path, regions: Regions) -> None:
    others = [FixedCrop(), RandomCrops(3, (0.2, 0.9), seed=2), RandomCrops(2, CROPS.scale, seed=2), RandomCrops(3, CROPS.scale)]
    for other in others:
        if other != regions:
            with pytest.raises(TokenStoreError, match=f"Choose the stored view, or build.*TOK{other.options()} --out"):
                use(store.path, folder, other)
    with pytest.raises(TokenStoreError, match="was made by the tokenizer"):
        use(store.path, folder, regions, CountingTokenizer(seed=1))
    with pytest.raises(TokenStoreError, match="was made by the tokenizer"):
        use(store.path, folder, regions, CountingTokenizer(vocab_size=60))
