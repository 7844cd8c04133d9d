"""Results of evaluations as files keep them."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from mapet.errors import CheckpointError
from mapet.evaluation.protocol import Result
from mapet.runtime.json_files import read_json

_RESULT = TypeAdapter(Result)


def read_result(path: Path) -> Result:
    """The result in a file: with a name, figures that are shares, and what it was measured on.

    Raises:
        CheckpointError: The file cannot be read, or holds no result.
    """
    try:
        result = _RESULT.validate_python(read_json(path, dict))
    except ValueError as error:
        raise _damaged(path) from error
    shares = [*result.figures.values(), *(result.random_figures or {}).values()]
    named = isinstance(result.protocol.get("name"), str) and isinstance(result.protocol.get("pool", ""), str)
    compared = result.metric in result.figures and (result.random_figures is None or result.metric in result.random_figures)
    floor = result.details.get("most_frequent_class", {})
    if not (isinstance(floor, dict) and named and compared and all(0 <= share <= 1 for share in shares) and result.test_images > 0):
        raise _damaged(path)
    return result


def read_results(folder: Path) -> tuple[dict[Path, Result], list[Path]]:
    """The results in a folder by their files, in the order of their names; and the files that hold none."""
    results, damaged = {}, []
    for path in sorted(folder.glob("*.json")):
        try:
            results[path] = read_result(path)
        except CheckpointError:
            damaged.append(path)
    return results, damaged


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is no evaluation, or is damaged or of another version of mapet. Remove it, and run the command again."
    )
