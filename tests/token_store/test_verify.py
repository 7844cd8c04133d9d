"""Tokenising again finds what does not belong together, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mapet.data.regions import FixedCrop, RandomCrops
from mapet.data.skipped import UnreadableImages
from mapet.errors import DataError, FailedRunError, TokenStoreError
from mapet.token_store.format import write_header
from mapet.token_store.read import TokenStore
from mapet.token_store.verify import Difference, Verification, verify_store
from tests.token_store.planted import CountingTokenizer, build, change_one_pixel, images_of, write_images

CROPS = RandomCrops(3, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 12, size=(11, 16))


@pytest.fixture(params=[FixedCrop(), CROPS], ids=["fixed", "stored"])
def store(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> TokenStore:
    return build(folder, tmp_path / "store", regions=request.param)


def verify(store: TokenStore, folder: Path, count: int = 1000, limit: int = 0, **options) -> Verification:
    tokenizer = options.pop("tokenizer", None) or CountingTokenizer()
    return verify_store(store, images_of(folder), tokenizer, count, batch_size=5, unreadable=UnreadableImages(limit), **options)


def plant(store: TokenStore, changes: dict[tuple[int, ...], int]) -> TokenStore:
    """Adds numbers to stored tokens, as an honest header of wrong tokens would have it."""
    ids = np.array(store.ids)
    for place, amount in changes.items():
        ids[place] = (ids[place] + amount) % store.vocab_size
    np.save(store.path / "ids.npy", ids)
    write_header(store.path, store.header.space, len(store), {})
    return TokenStore.open(store.path, verify=True)


def test_a_store_agrees_with_its_images(store: TokenStore, folder: Path) -> None:
    views = store.num_views or 1
    for workers in (0, 2):
        everything = verify(store, folder, workers=workers)
        assert (everything.crops, everything.tokens, everything.differences) == (12 * views, 12 * views * 4, [])
    everything.require()
    assert everything.agreement == 1
    assert everything.summary() == f"{12 * views} stored crops tokenised again: all {12 * views * 4} tokens are as stored"
    assert verify(store, folder, count=7).crops == 7


def test_the_sample_is_drawn_by_the_seed(store: TokenStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(seed: int) -> list[tuple]:
        seen, lookup = [], TokenStore.lookup
        with monkeypatch.context() as patch:
            patch.setattr(TokenStore, "lookup", lambda self, keys, view: (seen.append((*keys, view)), lookup(self, keys, view))[1])
            assert verify(store, folder, count=6, seed=seed).crops == 6
        return seen

    assert looked_up(1) == looked_up(1) != looked_up(2)


def test_every_planted_token_is_found_and_the_worst_comes_first(store: TokenStore, folder: Path) -> None:
    row = (3, 2) if store.num_views else (3,)
    other = (8, 0) if store.num_views else (8,)
    planted = plant(store, {(*row, 0, 1): 1, (*other, 0, 0): 5, (*other, 1, 0): 7})
    found = verify(planted, folder)
    assert [(difference.crop, difference.tokens) for difference in found.differences] == [(0, 2), (row[-1] % 3, 1)]
    assert found.differences[0].image.endswith(".png")
    with pytest.raises(FailedRunError, match=r"% of .* tokens are as stored\n.*\.png, view 0: 2 of 4 tokens differ(.|\n)*99\.9%"):
        found.require()


def test_near_ties_are_reported_and_many_differences_counted() -> None:
    few = Verification(1000, 196_000, [Difference("a.jpg", 3, 2)])
    few.require()
    assert few.summary().splitlines() == [
        "1,000 stored crops tokenised again: 99.999 % of 196,000 tokens are as stored",
        "  a.jpg, view 3: 2 of 196 tokens differ",
    ]
    many = Verification(1000, 196_000, [Difference(f"{n}.jpg", 0, 1) for n in range(30)])
    many.require()
    assert many.summary().splitlines()[-1] == "  and 25 more"
    with pytest.raises(FailedRunError, match="this store is wrong"):
        Verification(1000, 196_000, [Difference("a.jpg", 3, 197)]).require()


def test_tokens_of_other_crops_are_found(folder: Path, tmp_path: Path) -> None:
    """A store whose header names other crops than its tokens were made of."""
    store = build(folder, tmp_path / "store", regions=CROPS)
    header = store.path / "header.json"
    content = json.loads(header.read_text().replace('"seed": 1', '"seed": 2'))
    del content["own_sha256"]  # as earlier releases wrote it
    header.write_text(json.dumps(content))
    with pytest.raises(FailedRunError, match="this store is wrong for these images"):
        verify(TokenStore.open(store.path, verify=True), folder).require()


def test_what_cannot_be_compared_is_refused(store: TokenStore, folder: Path) -> None:
    with pytest.raises(TokenStoreError, match="was made by the tokenizer"):
        verify(store, folder, tokenizer=CountingTokenizer(seed=1))
    change_one_pixel(folder / "0004.png")
    with pytest.raises(TokenStoreError, match=r"1 of the 12 images .*0004\.png"):
        verify(store, folder)


def test_images_that_cannot_be_decoded_any_more_are_counted(store: TokenStore, folder: Path, monkeypatch) -> None:
    source = images_of(folder)
    keys = store.keys.astype("U").tolist()
    monkeypatch.setattr("mapet.token_store.read.image_keys", lambda _: keys)
    (folder / "0004.png").write_text("no image")
    with pytest.raises(DataError, match=r"0004\.png"):
        verify_store(store, source, CountingTokenizer(), 1000, unreadable=UnreadableImages(0))
    assert verify(store, folder, limit=1).crops == 11 * (store.num_views or 1)
