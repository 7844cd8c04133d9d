"""`mapet tokenizer convert`: a tokenizer from published weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Published weights of VQ-KD or of DALL-E's encoder, or facebook/flava-image-codebook to download those.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer.")],
    num_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads of a VQ-KD, if they are not 64 wide.")] = None,
) -> None:
    """Make a tokenizer from FILE; nothing in FILE is executed."""
    from mapet.runtime.lock import only_writer
    from mapet.tokenizers.base import refuse_existing
    from mapet.tokenizers.released import tokenizer_from_file

    refuse_existing(out)
    with only_writer(out):
        tokenizer = tokenizer_from_file(file, num_heads)
        tokenizer.save(out)
    rows, columns = tokenizer.grid_size
    print(
        f"Tokenizer: {out}  {tokenizer.kind}, vocabulary {tokenizer.vocab_size}, {rows} x {columns} tokens of images of "
        f"{tokenizer.image_size} px, fingerprint {tokenizer.fingerprint[:12]}"
    )
    if dropped := tokenizer.fit_report.get("dropped", []):
        counts = Counter(name.partition(".")[0] for name in dropped)
        parts = ", ".join(f"{part}.* ({count})" for part, count in counts.items())
        print(f"Left out, as tokens do not need it: {parts}.")
