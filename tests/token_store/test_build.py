from __future__ import annotations

import errno
import os
import shutil
import signal
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mapet.data.folder import FolderImages
from mapet.data.skipped import UnreadableImages
from mapet.data.source import sample_key, subset, with_keys
from mapet.errors import DataError, FailedRunError, StorageError, TokenizerError, TokenStoreError
from mapet.token_store import build as build_module
from mapet.token_store.build import build_store
from mapet.token_store.read import TokenStore
from tests.distributed.ranks import run_code
from tests.token_store.planted import CountingTokenizer, build, contents, images_of, write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 20)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "CHUNK", 8)
    monkeypatch.setattr(build_module, "SECONDS_BETWEEN_POLLS", 0.01)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_copies_are_tokenised_and_stored_once(folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        shutil.copyfile(folder / f"{number:04d}.png", folder / f"copy{number}.png")
    tokenizer = CountingTokenizer()
    store = build(folder, tmp_path / "store", tokenizer)
    assert (len(store), tokenizer.images) == (20, 20)
    assert store.match(images_of(folder)) == list(range(25))
    assert leftovers(tmp_path) == []


def test_building_again_does_nothing(folder: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "store")
    before = (tmp_path / "store" / "header.json").stat()
    tokenizer = CountingTokenizer()
    build(folder, tmp_path / "store", tokenizer)
    after = (tmp_path / "store" / "header.json").stat()
    assert (tokenizer.images, before.st_ino, before.st_mtime_ns) == (0, after.st_ino, after.st_mtime_ns)


def test_new_images_are_added_and_the_old_ones_kept(folder: Path, tmp_path: Path) -> None:
    old = contents(build(folder, tmp_path / "store"))
    write_images(folder, 3, first=100)
    (folder / "0000.png").unlink()
    tokenizer = CountingTokenizer()
    store = build(folder, tmp_path / "store", tokenizer)
    assert (tokenizer.images, len(store)) == (3, 23)
    fresh = contents(build(folder, tmp_path / "fresh"))
    assert contents(store) == old | fresh


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_continues(folder: Path, tmp_path: Path, failure: type[BaseException]) -> None:
    tokenizer = CountingTokenizer()
    tokenizer.fail_after, tokenizer.failure = 12, failure
    with pytest.raises(failure):
        build(folder, tmp_path / "store", tokenizer)
    assert not (tmp_path / "store").exists()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"renamed{(number * 7) % 20:02d}.png")
    again = CountingTokenizer()
    store = build(folder, tmp_path / "store", again)
    assert (tokenizer.images, again.images) == (12, 8)
    assert contents(store) == contents(build(folder, tmp_path / "at_once"))
    assert leftovers(tmp_path) == []


def test_kill_9_costs_one_part_at_most(folder: Path, tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from mapet.token_store import build as build_module
        from tests.token_store.planted import CountingTokenizer, build

        class Killed(BaseException):
            def __init__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        build_module.CHUNK = 8
        tokenizer = CountingTokenizer()
        tokenizer.fail_after, tokenizer.failure = 12, Killed
        build(Path({str(folder)!r}), Path({str(tmp_path / "store")!r}), tokenizer)
    """
    done = run_code(textwrap.dedent(script), tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = CountingTokenizer()
    build(folder, tmp_path / "store", again)
    assert again.images == 12  # 12 of 20 were tokenised, 8 of them saved


def test_changed_images_and_other_tokenizers_do_not_reuse_parts(folder: Path, tmp_path: Path) -> None:
    tokenizer = CountingTokenizer()
    tokenizer.fail_after = 12
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path / "store", tokenizer)
    gone = sample_key((folder / "0000.png").read_bytes())
    write_images(folder, 1, first=500)
    shutil.move(folder / "0500.png", folder / "0000.png")
    again = CountingTokenizer()
    again.fail_after = 0
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path / "store", again)
    other = CountingTokenizer(seed=1)
    store = build(folder, tmp_path / "store", other)
    assert (again.images, other.images, len(store)) == (0, 20, 20)
    assert contents(store) == contents(build(folder, tmp_path / "fresh", CountingTokenizer(seed=1)))
    assert gone not in store


def test_a_changed_image_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    tokenizer = CountingTokenizer()
    tokenizer.fail_after = 12
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path / "store", tokenizer)
    write_images(folder, 1, first=500)
    shutil.move(folder / "0500.png", folder / "0000.png")
    again = CountingTokenizer()
    store = build(folder, tmp_path / "store", again)
    assert (again.images, len(store)) == (9, 21)
    assert store.match(images_of(folder)) == list(range(20))


def interrupt(folder: Path, path: Path, **options: int) -> CountingTokenizer:
    """Leaves a build of 20 images after 12."""
    tokenizer = CountingTokenizer(**options)
    tokenizer.fail_after = 12
    with pytest.raises(KeyboardInterrupt):
        build(folder, path, tokenizer)
    return tokenizer


def test_an_interrupted_build_of_other_images_is_not_lost(folder: Path, tmp_path: Path) -> None:
    interrupt(folder, tmp_path / "store")
    other = write_images(tmp_path / "other", 5, first=300)
    assert len(build(other, tmp_path / "store")) == 5 + 12
    tokenizer = CountingTokenizer()
    store = build(folder, tmp_path / "store", tokenizer)
    assert (tokenizer.images, len(store)) == (8, 25)
    assert contents(store) == contents(build(folder, tmp_path / "one")) | contents(build(other, tmp_path / "two"))
    assert leftovers(tmp_path) == []


def test_an_interrupted_build_by_another_tokenizer_is_left_alone(folder: Path, tmp_path: Path) -> None:
    interrupt(folder, tmp_path / "store", seed=1)
    build(folder, tmp_path / "store").path.rename(tmp_path / "done")
    tokenizer = CountingTokenizer(seed=1)
    build(folder, tmp_path / "store", tokenizer)
    assert tokenizer.images == 8
    assert leftovers(tmp_path) == []


def test_names_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    broken, gone = (folder / os.fsdecode(name) for name in (b"caf\xe9.png", b"na\xefve.png"))
    broken.write_text("no image")
    gone.touch()
    source = images_of(folder)
    gone.unlink()
    store = build_store(source, CountingTokenizer(), tmp_path / "store", unreadable=UnreadableImages(2))
    assert {text.partition(":")[0] for text in store.unreadable.values()} == {str(broken), str(gone)}
    assert len(TokenStore.open(tmp_path / "store").match(source)) == 20


def test_a_damaged_part_is_made_again(folder: Path, tmp_path: Path) -> None:
    tokenizer = CountingTokenizer()
    tokenizer.fail_after = 12
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path / "store", tokenizer)
    parts = sorted((tmp_path / ".store.parts").rglob("*.npz"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:200])
    again = CountingTokenizer()
    store = build(folder, tmp_path / "store", again)
    assert again.images in (8 + 8, 8 + 4)
    assert contents(store) == contents(build(folder, tmp_path / "fresh"))


def test_tokens_of_another_tokenizer_are_refused_and_kept(folder: Path, tmp_path: Path) -> None:
    old = contents(build(folder, tmp_path / "store"))
    with pytest.raises(TokenStoreError, match=r"made by the tokenizer .* ANOTHER_STORE"):
        build(folder, tmp_path / "store", CountingTokenizer(seed=1))
    assert contents(TokenStore.open(tmp_path / "store", verify=True)) == old


def test_folders_of_other_things_are_never_replaced(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenStoreError, match=r"is no token store.*0000\.png.*Choose another --out"):
        build(folder, folder)
    assert len(list(folder.iterdir())) == 20
    with pytest.raises(TokenStoreError, match="is no token store"):
        build(folder, folder / "0000.png")
    store = build(folder, tmp_path / "store")
    (store.path / "notes.txt").write_text("do not lose me")
    with pytest.raises(TokenStoreError, match=r"contains notes\.txt"):
        build(folder, store.path)
    (tmp_path / "empty").mkdir()
    assert len(build(folder, tmp_path / "empty")) == 20


@pytest.mark.parametrize("name", ["ids.npy", "keys.npy", "header.json"])
def test_a_damaged_store_is_built_again(folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    store = build(folder, tmp_path / "store")
    good = contents(store)
    file = store.path / name
    file.write_bytes(file.read_bytes()[:-5])
    assert contents(build(folder, tmp_path / "store")) == good
    assert "built again now" in " ".join(capsys.readouterr().err.split())


def test_unreadable_images_are_limited_in_every_run_and_recorded(folder: Path, tmp_path: Path) -> None:
    (folder / "0007.png").write_bytes((folder / "0007.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"0007\.png"):
        build(folder, tmp_path / "store")
    tokenizer = CountingTokenizer()
    store = build(folder, tmp_path / "store", tokenizer, limit=1)
    assert (len(store), len(store.unreadable)) == (19, 1)
    assert tokenizer.images == 12  # the batches before the refusal were saved
    with pytest.raises(DataError, match=r"0007\.png"):
        build(folder, tmp_path / "store")
    write_images(folder, 1, first=7)
    repaired = build(folder, tmp_path / "store")
    assert repaired.match(images_of(folder)) == list(range(20))


def test_nothing_but_unreadable_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_text("a text")
    with pytest.raises(DataError, match=r"None of the 1 images can be decoded, for example .*a\.jpg"):
        build(tmp_path / "images", tmp_path / "store", limit=5)
    assert not (tmp_path / "store").exists()


def test_ids_that_cannot_be_stored_are_refused(folder: Path, tmp_path: Path) -> None:
    class Overflowing(CountingTokenizer):
        def tokens(self, images: torch.Tensor) -> torch.Tensor:
            return super().tokens(images) + 65_536

    with pytest.raises(TokenizerError, match=r"random_projection.*vocabulary of 50"):
        build(folder, tmp_path / "store", Overflowing())


def test_images_that_change_meanwhile_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    class Restless(CountingTokenizer):
        def tokens(self, images: torch.Tensor) -> torch.Tensor:
            if not self.images:
                shutil.copyfile(folder / "0000.png", folder / "0019.png")
            return super().tokens(images)

    with pytest.raises(TokenStoreError, match=r"1 images in .* changed while they were tokenised: .*0019\.png"):
        build(folder, tmp_path / "store", Restless())
    assert len(build(folder, tmp_path / "store")) == 19


def test_a_full_disk_loses_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = contents(build(folder, tmp_path / "store"))
    write_images(folder, 3, first=100)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(StorageError, match="No space left"):
            build(folder, tmp_path / "store")
    assert contents(TokenStore.open(tmp_path / "store", verify=True)) == old
    tokenizer = CountingTokenizer()
    assert len(build(folder, tmp_path / "store", tokenizer)) == 23
    assert tokenizer.images == 0


def test_a_part_that_cannot_be_written_is_an_error_in_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".store.parts").write_text("in the way")
    with pytest.raises(StorageError, match=r"Cannot write .*store\.parts"):
        build(folder, tmp_path / "store")


def test_ranks_share_the_work_and_return_the_same_store(folder: Path, tmp_path: Path) -> None:
    (folder / "0007.png").write_text("no image")
    tokenizers = [CountingTokenizer() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        ranks = [pool.submit(build, folder, tmp_path / "store", tokenizers[rank], limit=1, rank=rank, world=3) for rank in range(3)]
        stores = [rank.result(timeout=60) for rank in ranks]
    assert sum(tokenizer.images for tokenizer in tokenizers) == 19
    assert max(tokenizer.images for tokenizer in tokenizers) < 19
    alone = build(folder, tmp_path / "alone", limit=1)
    for store in stores:
        assert contents(store) == contents(alone)
        assert store.unreadable == alone.unreadable
    assert leftovers(tmp_path) == []


def test_a_rank_that_stopped_working_ends_the_wait(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "SECONDS_WITHOUT_NEWS", 0.05)
    tokenizer = CountingTokenizer()
    with pytest.raises(FailedRunError, match="No other process has tokenised anything"):
        build(folder, tmp_path / "store", tokenizer, rank=0, world=2)
    assert 0 < tokenizer.images < 20
    again = CountingTokenizer()
    assert len(build(folder, tmp_path / "store", again)) == 20
    assert again.images == 20 - tokenizer.images


def test_images_whose_keys_are_known_are_read_only_to_be_tokenised(folder: Path, tmp_path: Path, monkeypatch) -> None:
    source = with_keys(images_of(folder))
    reads, read = [], FolderImages.read
    monkeypatch.setattr(FolderImages, "read", lambda images, index: (reads.append(index), read(images, index))[1])
    build_store(source, CountingTokenizer(), tmp_path / "store", unreadable=UnreadableImages())
    assert sorted(reads) == list(range(20))


def test_several_sources_share_a_store(folder: Path, tmp_path: Path) -> None:
    source = images_of(folder)
    tokenizer = CountingTokenizer()
    for indices in (range(12), range(8, 20)):
        part = subset(source, list(indices))
        build_store(part, tokenizer, tmp_path / "store", batch_size=4, unreadable=UnreadableImages(0))
    assert tokenizer.images == 20
    assert TokenStore.open(tmp_path / "store", verify=True).match(source) == list(range(20))
