"""Stores of several crops an image: the tokens of exactly those crops, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import signal
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.regions import FixedCrop, RandomCrops
from mapet.data.source import sample_key
from mapet.errors import FailedRunError, StorageError, TokenStoreError
from mapet.token_store import build as build_module
from mapet.token_store import merge as merge_module
from mapet.token_store.parts import PartFolder
from mapet.token_store.read import TokenStore
from mapet.tokenizers.random_projection import RandomProjection
from tests.distributed.ranks import run_code
from tests.token_store.planted import CountingTokenizer, build, contents, images_of, write_images

CHECKOUT = Path(__file__).resolve().parents[2]
CROPS = RandomCrops(3, (0.3, 0.9), seed=6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 14, size=(13, 20))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "CHUNK", 4)
    monkeypatch.setattr(build_module, "SECONDS_BETWEEN_POLLS", 0.01)


def tokens_of(file: Path, tokenizer: RandomProjection, regions: RandomCrops, number: int) -> np.ndarray:
    """The tokens (gh, gw) of one crop, cut out and resized here."""
    image, key = Image.open(file), sample_key(file.read_bytes())
    region = regions.region(*image.size, key, number)
    part = image.crop(region.box).resize((8, 8), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None] / 255
    return tokenizer.encode(pixels.flip(3) if region.flip else pixels)[0].numpy()


def test_every_row_and_view_has_the_tokens_of_exactly_that_crop(folder: Path, tmp_path: Path) -> None:
    store = build(folder, tmp_path / "store", regions=CROPS)
    assert (store.ids.shape, store.num_views, len(store)) == ((14, 3, 2, 2), 3, 14)
    files = {sample_key(file.read_bytes()): file for file in folder.iterdir()}
    for row, key in enumerate(store.keys.astype("U").tolist()):
        for number in range(3):
            assert np.array_equal(store.ids[row, number], tokens_of(files[key], CountingTokenizer(), CROPS, number))
    assert len(np.unique(store.ids.reshape(14 * 3, -1), axis=0)) > 30


def test_workers_batches_and_names_change_nothing(folder: Path, tmp_path: Path) -> None:
    expected = (build(folder, tmp_path / "store", regions=CROPS).path / "ids.npy").read_bytes()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"renamed{(number * 5) % 14:02d}.png")
    assert (build(folder, tmp_path / "again", regions=CROPS, workers=2).path / "ids.npy").read_bytes() == expected


def test_the_same_crop_has_the_same_tokens_in_a_store_of_more(folder: Path, tmp_path: Path) -> None:
    few = build(folder, tmp_path / "few", regions=CROPS)
    more = build(folder, tmp_path / "more", regions=RandomCrops(5, CROPS.scale, seed=6))
    assert np.array_equal(few.ids, more.ids[:, :3])


def test_lookup_takes_one_view_for_all_or_one_for_each(folder: Path, tmp_path: Path) -> None:
    store = build(folder, tmp_path / "store", regions=CROPS)
    keys = store.keys[[5, 2, 2]]
    assert np.array_equal(store.lookup(keys, 1), store.ids[[5, 2, 2], 1])
    expected = store.ids[[5, 2, 2], [0, 2, 1]]
    for views in ([0, 2, 1], (0, 2, 1), np.array([0, 2, 1]), torch.tensor([0, 2, 1])):
        found = store.lookup(keys, views)
        assert found.dtype == torch.int64
        assert np.array_equal(found, expected)
    assert store.lookup([], 2).shape == (0, 2, 2)
    with pytest.raises(TokenStoreError, match=r"3 views of every image\. Give the view: lookup\(sample_keys, views\).*0 to 2"):
        store.lookup(keys)
    for wrong in (3, -1, [0, 3, 0]):
        with pytest.raises(TokenStoreError, match=r"no view (3|-1) of an image; allowed: 0 to 2.*--views 3 --scale 0\.3 0\.9"):
            store.lookup(keys, wrong)
    fixed = build(folder, tmp_path / "fixed")
    assert torch.equal(fixed.lookup(keys, 0), fixed.lookup(keys))
    with pytest.raises(TokenStoreError, match="no view 1 of an image; allowed: 0 to 0"):
        fixed.lookup(keys, 1)


def test_another_view_is_refused_with_the_command_for_it(folder: Path, tmp_path: Path) -> None:
    old = contents(build(folder, tmp_path / "store", regions=CROPS))
    command = r"build a store for yours: mapet tokenize DATA --tokenizer TOK{} --out ANOTHER_STORE"
    for other, options in (
        (FixedCrop(), ""),
        (RandomCrops(4, CROPS.scale, seed=6), " --views 4 --scale 0.3 0.9 --seed 6"),
        (RandomCrops(3, (0.3, 1.0), seed=6), " --views 3 --scale 0.3 1 --seed 6"),
        (RandomCrops(3, CROPS.scale, flip=False, seed=6), " --views 3 --scale 0.3 0.9 --no-flip --seed 6"),
        (RandomCrops(3, CROPS.scale), " --views 3 --scale 0.3 0.9"),
    ):
        with pytest.raises(TokenStoreError) as refused:
            build(folder, tmp_path / "store", regions=other)
        assert str(refused.value).endswith(command.format(options))
    assert contents(TokenStore.open(tmp_path / "store", verify=True)) == old
    build(folder, tmp_path / "fixed")
    with pytest.raises(TokenStoreError, match='holds tokens of the view name "fixed", but the images are shown as name "stored"'):
        build(folder, tmp_path / "fixed", regions=CROPS)


def test_what_is_missing_is_told_with_the_views_of_the_store(folder: Path, tmp_path: Path) -> None:
    store = build(folder, tmp_path / "store", regions=CROPS)
    write_images(folder, 1, first=50)
    with pytest.raises(TokenStoreError, match=r"0050\.png\..*--tokenizer TOK --views 3 --scale 0\.3 0\.9 --seed 6 --out .*store$"):
        store.match(images_of(folder))
    (store.path / "ids.npy").write_bytes((store.path / "ids.npy").read_bytes()[:-1])
    with pytest.raises(TokenStoreError, match=r"truncated.*--views 3 --scale 0\.3 0\.9 --seed 6 --out"):
        TokenStore.open(store.path)


def test_new_images_are_added(folder: Path, tmp_path: Path) -> None:
    old = contents(build(folder, tmp_path / "store", regions=CROPS))
    write_images(folder, 2, first=50)
    tokenizer = CountingTokenizer()
    store = build(folder, tmp_path / "store", tokenizer, regions=CROPS)
    assert (tokenizer.images, len(store)) == (2 * 3, 16)
    assert contents(store) == old | contents(build(folder, tmp_path / "fresh", regions=CROPS))


def test_an_interrupted_build_continues_to_the_same_files(folder: Path, tmp_path: Path) -> None:
    tokenizer = CountingTokenizer()
    tokenizer.fail_after = 25
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path / "store", tokenizer, regions=CROPS)
    build(folder, tmp_path / "others").path.rename(tmp_path / "fixed")  # leaves the parts of other crops alone
    again = CountingTokenizer()
    store = build(folder, tmp_path / "store", again, regions=CROPS)
    assert tokenizer.images + again.images == 14 * 3
    assert tokenizer.images > 0
    whole = build(folder, tmp_path / "whole", regions=CROPS)
    for name in ("ids.npy", "keys.npy", "header.json"):
        assert (store.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_kill_9_costs_one_part_at_most(folder: Path, tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from mapet.data.regions import RandomCrops
        from mapet.token_store import build as build_module
        from tests.token_store.planted import CountingTokenizer, build

        class Killed(BaseException):
            def __init__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        build_module.CHUNK = 4
        tokenizer = CountingTokenizer()
        tokenizer.fail_after, tokenizer.failure = 18, Killed
        build(Path({str(folder)!r}), Path({str(tmp_path / "store")!r}), tokenizer, regions={CROPS!r})
    """
    done = run_code(textwrap.dedent(script), tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / ".store.lock").exists()
    again = CountingTokenizer()
    store = build(folder, tmp_path / "store", again, regions=CROPS)
    assert again.images == 14 * 3 - 12
    assert contents(store) == contents(build(folder, tmp_path / "fresh", regions=CROPS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "images", "store"]


@pytest.mark.parametrize("regions", [FixedCrop(), CROPS], ids=["fixed", "stored"])
@pytest.mark.parametrize("rows", [1, 5, 14])
def test_a_store_is_written_in_blocks(folder: Path, tmp_path: Path, monkeypatch, regions, rows: int) -> None:
    whole = build(folder, tmp_path / "whole", regions=regions)
    monkeypatch.setattr(merge_module, "BLOCK_BYTES", rows * whole.ids[0].nbytes)
    write_images(tmp_path / "some", 6, size=(13, 20))
    build(tmp_path / "some", tmp_path / "blocks", regions=regions)
    blocks = build(folder, tmp_path / "blocks", regions=regions)
    for name in ("ids.npy", "keys.npy", "header.json"):
        assert (blocks.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_full_disk_while_the_tokens_are_written_loses_nothing(folder: Path, tmp_path: Path, monkeypatch) -> None:
    blocks = merge_module._blocks

    def fill_the_disk(*arguments):
        yield next(blocks(*arguments))[:3]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "_blocks", fill_the_disk)
        with pytest.raises(StorageError, match="No space left"):
            build(folder, tmp_path / "store", regions=CROPS)
    assert not (tmp_path / "store").exists()
    tokenizer = CountingTokenizer()
    assert len(build(folder, tmp_path / "store", tokenizer, regions=CROPS)) == 14
    assert tokenizer.images == 0


def test_a_part_that_gets_lost_is_no_store_with_holes(folder: Path, tmp_path: Path, monkeypatch) -> None:
    read = PartFolder.read_all
    for keep in (1, 2):  # of the looks at the parts: in the second the store is planned, in the third it is written
        looks = []

        def forgetful(parts: PartFolder, looks=looks, keep=keep):
            looks.append(1)
            found = list(read(parts))
            return iter(found if len(looks) <= keep else found[1:])

        with monkeypatch.context() as patch:
            patch.setattr(PartFolder, "read_all", forgetful)
            with pytest.raises(FailedRunError, match=r"became unreadable\. Run the same command again"):
                build(folder, tmp_path / "store", regions=CROPS)
        assert not (tmp_path / "store").exists()
    assert len(build(folder, tmp_path / "store", regions=CROPS)) == 14


def test_batches_hold_as_many_crops_as_asked_for(folder: Path, tmp_path: Path, monkeypatch) -> None:
    calls, tokens = [], CountingTokenizer.tokens
    monkeypatch.setattr(CountingTokenizer, "tokens", lambda self, images: (calls.append(len(images)), tokens(self, images))[1])
    build(folder, tmp_path / "three", regions=RandomCrops(2))
    build(folder, tmp_path / "many", regions=RandomCrops(6))
    assert calls == [4] * 7 + [6] * 14
