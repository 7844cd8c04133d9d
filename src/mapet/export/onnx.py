"""Exports for ONNX, through torch's exporter; the number of images is free, their size is not."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mapet.checkpoints.address import LoadedBackbone
from mapet.errors import FailedRunError, ModelError, in_one_line
from mapet.export.export import Outputs, Written, largest_difference, sample_images

OPSET = 18
_NEEDED = ("onnx", "onnxscript")


def write(loaded: LoadedBackbone, folder: Path) -> Written:
    """Writes model.onnx, and runs it with ONNX Runtime where that is installed.

    Raises:
        ModelError: Packages are missing; the message names the command that installs them.
        FailedRunError: The exporter failed.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ModelError(f"Exporting to ONNX needs {' and '.join(missing)}, not installed here. Run: pip install 'mapet[onnx]'")
    network = Outputs(loaded.backbone).eval()
    path = folder / "model.onnx"
    _export(network, sample_images(loaded.backbone, 3), path)
    usage = (
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
        f'({network.name},) = session.run(None, {{"images": images}})  # images: (B, 3, H, W) float32, normalised'
    )
    if find_spec("onnxruntime") is None:
        note = "Its outputs were not compared: onnxruntime is not installed."
        return Written("onnx", usage, None, (note,))
    return Written("onnx", usage, largest_difference(loaded.backbone, lambda images: _run(path, images)))


def _export(network: Outputs, images: Tensor, path: Path) -> None:
    options = {"input_names": ["images"], "output_names": [network.name], "opset_version": OPSET, "verbose": False}
    batch = torch.export.Dim("batch", min=1, max=2**16)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            torch.onnx.export(
                network, (images,), str(path), dynamo=True, dynamic_shapes=({0: batch},), external_data=False, **options
            )
    except OSError:  # the disk is full or not writable
        raise
    except Exception as error:  # whatever comes out of torch.export and onnxscript
        raise FailedRunError(f"torch's ONNX exporter failed on this backbone: {in_one_line(error)}.") from error


def _run(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # one image at a time: the number of images is free
    outputs = [session.run(None, {"images": image[None].numpy()})[0] for image in images]
    return torch.from_numpy(np.concatenate([np.asarray(output) for output in outputs]))
