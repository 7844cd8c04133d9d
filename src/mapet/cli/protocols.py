"""`mapet protocols`: how figures are taken."""

from __future__ import annotations

from typing import Annotated

import typer


def protocols(name: Annotated[str | None, typer.Argument(help="Print the presets of this protocol in full.")] = None) -> None:
    """List the protocols with the hash of every preset, or print one: its settings and where they come from."""
    from mapet.evaluation.presets import PROTOCOLS, preset_text, presets_of, protocol_of

    if name is not None:
        print(preset_text(name), end="")
        return
    for protocol in PROTOCOLS:
        print(f"{protocol:12} {preset_text(protocol).splitlines()[0].lstrip('# ')}")
        for preset in presets_of(protocol):
            chosen = protocol_of(f"{protocol}:{preset}")
            print(f"    {chosen.title:28} protocol {chosen.hash}")
