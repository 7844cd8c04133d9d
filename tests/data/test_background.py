"""Worker processes: whatever happens to one, the wait for its batch ends in words."""

import ast
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from mapet.data import background
from mapet.data.batch import LoadedBatch
from mapet.data.digits import DigitImages
from mapet.data.loader import RegionRenderer, ViewRenderer, make_loader
from mapet.data.order import BatchItem, sequential_batches
from mapet.data.regions import FixedCrop
from mapet.data.views import FixedView, Rendering
from mapet.errors import DataError, FailedRunError, SettingsError
from tests.distributed.ranks import run_code
from tests.parsed import nodes_of_package


class DyingImages(DigitImages):
    """The process that reads image 3 is killed."""

    def read(self, index: int) -> bytes:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class RefusingImages(DigitImages):
    def read(self, index: int) -> bytes:
        raise DataError(f"Row {index} is wrong.")


class Rejected(LoadedBatch):
    """A batch for which there is no room."""

    def share_memory(self) -> LoadedBatch:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)\nmore")


class RejectedBatches(background.BatchMaker):
    def __getitem__(self, item: BatchItem) -> LoadedBatch:
        return Rejected(torch.zeros(1), [], None, torch.zeros(1), [])

    def bytes_of(self, item: BatchItem) -> int:
        return 1


def test_a_worker_that_is_killed_ends_the_run_in_words():
    """As the system does where memory is short; the signal handler of torch, which would raise anywhere, is not left behind."""
    before = signal.getsignal(signal.SIGCHLD)
    loader = iter(make_loader(DyingImages(), ViewRenderer(FixedView(8)), sequential_batches(8, 1), workers=2))
    assert next(loader).indices.tolist() == [0]
    assert signal.getsignal(signal.SIGCHLD) is before
    with pytest.raises(FailedRunError, match=r"process that loads images ended \(SIGKILL\). Memory was short.*--workers"):
        list(loader)


def test_an_error_in_a_worker_arrives_as_it_is():
    with pytest.raises(DataError, match=r"^Row 0 is wrong\.$"):
        list(make_loader(RefusingImages(), ViewRenderer(FixedView(8)), [BatchItem([0])], workers=1))


def test_a_batch_that_does_not_fit_into_shared_memory_ends_the_run():
    with pytest.raises(
        FailedRunError, match=r"does not fit into shared memory .*28\)\)\. .*--shm-size=2g.*--workers 0.*mechanics.workers=0"
    ):
        list(background.BackgroundBatches(RejectedBatches(), [BatchItem([0])], 1, False))


@pytest.mark.parametrize("kind", ["views", "regions"])
def test_free_shared_memory_is_checked_before_the_start(monkeypatch, kind):
    """64 MB, of which five batches of 100 images of 224 px take 72."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=64, f_frsize=2**20))
    items = sequential_batches(500, 100)
    if kind == "views":
        loader = make_loader(DigitImages(), ViewRenderer(FixedView(224)), items, workers=2)
    else:
        loader = make_loader(DigitImages(), RegionRenderer(FixedCrop(), Rendering(112), Rendering(194)), items, workers=2)
    with pytest.raises(
        SettingsError, match=r"2 processes that load images need 72 MB.* has 64 MB free.*--shm-size=2g.*--workers 0"
    ):
        next(iter(loader))
    few = make_loader(DigitImages(), ViewRenderer(FixedView(224)), [BatchItem([0, 1]), BatchItem([2])], workers=2)
    assert [len(batch.keys) for batch in few] == [2, 1]  # what is on its way counts, not what might be


def test_there_is_one_way_to_load_in_the_background():
    """So that these tests hold for every loader."""
    users = {
        path.name
        for path, nodes in nodes_of_package().items()
        for node in nodes
        if isinstance(node, ast.Name | ast.Attribute) and "DataLoader" in (getattr(node, "id", ""), getattr(node, "attr", ""))
    }
    assert users == {"background.py"}


def test_there_is_one_dataset_and_one_way_to_make_a_loader():
    nodes = [node for nodes in nodes_of_package().values() for node in nodes]
    bases = [(node.name, ast.unparse(base)) for node in nodes if isinstance(node, ast.ClassDef) for base in node.bases]
    assert [name for name, base in bases if base.startswith("Dataset")] == ["ImageBatches"]
    called = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    assert called.count("BackgroundBatches") == called.count("ImageBatches") == 1


def test_no_batches_need_no_workers():
    assert list(make_loader(DigitImages(), ViewRenderer(FixedView(8)), [], workers=2)) == []


INTERRUPTED = """
import os, signal, time
from mapet.data.digits import DigitImages
from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import sequential_batches
from mapet.data.views import FixedView

class Slow(DigitImages):
    def read(self, index):
        time.sleep(0.02)
        return super().read(index)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
loader = iter(make_loader(Slow(), ViewRenderer(FixedView(8)), sequential_batches(40, 1), workers=2))
os.killpg(0, signal.SIGINT)
os.killpg(0, signal.SIGTERM)
print(sum(len(batch.keys) for batch in loader))
"""


def test_signals_to_the_whole_group_print_nothing_in_workers(tmp_path):
    """F20: also in the moment in which they start."""
    done = run_code(INTERRUPTED, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40\n", "")
