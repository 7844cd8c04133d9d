"""Data sets of the Hugging Face Hub, and folders of `save_to_disk`: through `datasets`, which fetches once and keeps a cache.

A location is `hf://datasets/OWNER/NAME` or `hf://OWNER/NAME`, with `@REVISION` (a commit, tag or branch) and `/CONFIG` behind it as
needed. For the columns see `rows`. Where the Hub is not reached, `datasets` takes whatever revision its cache holds: here only if
no other one was requested.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.data.labels import check_pairable
from mapet.data.rows import RowImages, Table, find_columns, silent_datasets
from mapet.data.splits import SPLIT_NAMES, TRAIN, split_named
from mapet.errors import DataError, StorageError
from mapet.runtime.files import remedy, write_text
from mapet.runtime.progress import say
from mapet.runtime.regular import open_regular

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, DatasetDict, Features

PREFIX = "hf://"
_FOOTERS_AT_ONCE = 8
_FORM = re.compile(
    r"hf://(?:datasets/)?(?P<name>(?!datasets/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/convert/[\w.-]+|refs/pr/\d+|[^/@]+))?(?:/(?P<config>[\w.-]+))?/?"
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@dataclass(frozen=True)
class HubAddress:
    """A data set on the Hub.

    Args:
        name: OWNER/NAME.
        revision: A commit, tag or branch; by default the newest.
        config: Which of its configurations, where it has several.
    """

    name: str
    revision: str | None
    config: str | None

    @classmethod
    def parse(cls, location: str) -> HubAddress:
        """Reads `hf://datasets/OWNER/NAME@REVISION/CONFIG`."""
        match = _FORM.fullmatch(location)
        if match is None:
            raise DataError(
                f"'{location}' is no address on the Hub. Write hf://datasets/OWNER/NAME, if needed with @REVISION and /CONFIG "
                "behind it: hf://datasets/OWNER/NAME@REVISION/CONFIG."
            )
        return cls(match["name"], match["revision"], match["config"])


def open_hub(location: str) -> dict[str, RowImages]:
    """The splits of a data set on the Hub, fetched if the cache lacks them: training part first, then those held out.

    Raises:
        DataError: It cannot be had, or has no images in a supported form; the message has a remedy.
        StorageError: There is no room for it in the cache.
    """
    from datasets import DatasetDict

    address = HubAddress.parse(location)
    try:
        builder = _builder(address)
        _refuse_files_that_differ(builder, address)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    except DataError:
        raise
    except Exception as error:  # what its parts raise (network, cache, file formats) comes through `datasets` as it is
        raise _no_access(location, address, error) from error
    assert isinstance(splits, DatasetDict)
    return _parts(splits, address.name, location)


def _builder(address: HubAddress) -> DatasetBuilder:
    """The builder that fetches and unpacks the data set; prints its revision."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.cache.cache import Cache

    with _quiet_log():
        builder = load_dataset_builder(f"{PREFIX}datasets/{address.name}", address.config, revision=address.revision)
    commit, revision = str(builder.hash), address.revision
    if not isinstance(builder, Cache):
        say(f"{address.name} is taken from the Hub at revision {commit}.")
    elif revision and not (len(revision) >= 7 and commit.startswith(revision)):
        raise DataError(
            f"The Hub is not reached, and the cache holds {address.name} at the commit {commit}, which may not be "
            f"'{revision}'. Write {PREFIX}datasets/{address.name}@{commit} for what is there, or try again with a connection."
        )
    else:
        say(f"The Hub is not reached: {address.name} is taken from the cache, at revision {commit}.")
    return builder


@contextmanager
def _quiet_log() -> Iterator[None]:
    """No warnings of `datasets` about what it took from the cache: mapet prints its own line."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _no_access(location: str, address: HubAddress, error: Exception) -> DataError | StorageError:
    from datasets import config
    from datasets.exceptions import DatasetNotFoundError

    reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(reason, OSError) and reason.errno in _NO_ROOM:
        return StorageError(
            f"Cannot keep {location} in the cache {config.HF_DATASETS_CACHE}: {reason.strerror}. To go on, "
            f"{remedy(reason)}, or set HF_HOME to another folder."
        )
    download = f"`hf download {address.name} --repo-type dataset --local-dir FOLDER`"
    words = f"Cannot open {location}: {' '.join(str(error).split()).rstrip('.!') or type(error).__name__}."
    if isinstance(error, DatasetNotFoundError):
        return DataError(
            f"{words} Check owner and name. If it is private or gated, ask for access on its page and run `hf auth login` once."
        )
    if isinstance(error, ConnectionError):
        return DataError(
            f"{words} Neither is it in the cache ({config.HF_DATASETS_CACHE}; moved by HF_HOME). Where there is a connection, run "
            f"{download}, bring FOLDER here and give it in place of the address."
        )
    if isinstance(error, ValueError) and "onfig" in str(error):
        return DataError(f"{words} Write the configuration behind the address: {PREFIX}datasets/{address.name}/CONFIG.")
    return DataError(f"{words} If its files are images, Parquet or tars, run {download} and give FOLDER.")


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def open_saved(folder: Path, location: str) -> dict[str, RowImages]:
    """The splits in a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DataError: The folder is damaged, or does not hold images in a form that is understood.
    """
    from datasets import Dataset, load_from_disk

    try:
        for file in folder.rglob("*"):
            if not file.is_dir():
                open_regular(file).close()
        with silent_datasets():
            saved = load_from_disk(str(folder))
    except Exception as error:  # Arrow, JSON and the file system come through `datasets` as they are
        raise DataError(
            f"{folder} is probably a folder of `save_to_disk`, but cannot be read (damaged, incomplete, or without rows): {error}"
        ) from error
    return {"": _rows(saved, folder.name, location)} if isinstance(saved, Dataset) else _parts(saved, folder.name, location)


def _parts(splits: DatasetDict, title: str, location: str) -> dict[str, RowImages]:
    """The training part and what is held out, in the order validation, test, by their names; or the only split."""
    datasets = {str(name): dataset for name, dataset in splits.items()}
    used: dict[str, str] = {}
    for split, split_names in SPLIT_NAMES.items():
        names = [name for name in datasets if split_named(name) == split]
        used |= dict.fromkeys(sorted(names, key=lambda name: (*split_names, name.lower()).index(name.lower()))[:1], split)
    if TRAIN not in used.values():
        if len(datasets) != 1:
            raise DataError(
                f"{location} has the splits {', '.join(datasets) or '(none)'}, but none called '{TRAIN}'. In Python, "
                "`datasets.load_dataset(...)[SPLIT].save_to_disk(FOLDER)` writes one of them; then give FOLDER."
            )
        used = dict.fromkeys(datasets, "")
    if unused := [name for name in datasets if name not in used]:
        say(f"{location}: used are {', '.join(used)}; left out: {', '.join(unused)}.")
    parts: dict[str, RowImages] = {}
    for name in used:
        train = next(iter(parts.values()), None)
        parts[name] = _rows(datasets[name], f"{title} {name}", location, train.classes if train else None)
        check_pairable(train or parts[name], parts[name])
    return parts


def _rows(dataset: Dataset, title: str, location: str, classes: tuple[str, ...] | None = None) -> RowImages:
    _refuse_other_features(dataset, title)
    return RowImages([Table(dataset, find_columns(dataset.features.arrow_schema, title), title, None)], location, classes=classes)


def _refuse_files_that_differ(builder: DatasetBuilder, address: HubAddress) -> None:
    """Refuses Parquet files whose class names differ: `datasets` takes those of the first file for all.

    Every footer is fetched for it, once for a revision.
    """
    import fsspec
    from datasets import Features, config
    from pyarrow import parquet

    def names(file: str) -> dict[str, list[str]]:
        with fsspec.open(file, "rb") as opened:
            return _class_names(Features.from_arrow_schema(parquet.read_schema(opened)))

    splits = getattr(builder.config, "data_files", None) or {}
    files = [str(file) for listed in splits.values() for file in listed if str(file).lower().endswith(".parquet")]
    compared = (
        Path(config.HF_DATASETS_CACHE) / "mapet-hub" / hashlib.sha256("\n".join([str(builder.hash), *files]).encode()).hexdigest()
    )
    if len(files) < 2 or compared.is_file():
        return
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        classes_by_file = [*pool.map(names, files)]
    if differ := [file for file, classes in zip(files, classes_by_file, strict=True) if classes != classes_by_file[0]]:
        raise DataError(
            f"{files[0]} and {differ[0]} name the classes otherwise, and `datasets` reads both by the names of the first. Run "
            f"`hf download {address.name} --repo-type dataset --local-dir FOLDER` and give FOLDER: there labels are paired by name."
        )
    with suppress(StorageError):  # a cache that others filled may be read-only
        write_text(compared, address.name)


def _class_names(features: Features) -> dict[str, list[str]]:
    from datasets import ClassLabel

    return {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}


def _refuse_other_features(dataset: Dataset, title: str) -> None:
    """Refuses Arrow files whose own class names are not those of the whole, which `datasets` does not compare."""
    import pyarrow
    from datasets import Features

    for file in dataset.cache_files:
        try:
            with pyarrow.memory_map(file["filename"]) as mapped:
                file_classes = _class_names(Features.from_arrow_schema(pyarrow.ipc.open_stream(mapped).schema))
        except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file['filename']} of {title} cannot be read: {error}. Save the data set anew.") from error
        whole = _class_names(dataset.features)
        if differ := [name for name in file_classes if name in whole and file_classes[name] != whole[name]]:
            raise DataError(
                f"{file['filename']} names the classes of '{differ[0]}' otherwise than the rest of {title} does. "
                "Save the data set anew."
            )
