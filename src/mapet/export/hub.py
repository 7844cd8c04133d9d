"""Puts an export on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from mapet.errors import FailedRunError, ModelError, in_one_line

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads everything in `folder` as the model OWNER/NAME, which is made if it is not there; returns its address.

    Raises:
        ModelError: The name is none.
        FailedRunError: The Hub refused it, or was not reached; the folder stays as it is.
    """
    import huggingface_hub

    if _NAME.fullmatch(name) is None:
        raise ModelError(f"'{name}' is no name of a model on the Hub. Write OWNER/NAME.")
    api = huggingface_hub.HfApi(library_name="mapet")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from mapet")
    except Exception as error:  # what its parts raise (network, access, names) comes through huggingface_hub as it is
        raise FailedRunError(
            f"Cannot push to {name}: {in_one_line(error)}. Run `hf auth login` once with a token that may write. The export is in "
            f"{folder}: `hf upload {name} {folder}` pushes it later."
        ) from error
    return f"https://huggingface.co/{name}"
