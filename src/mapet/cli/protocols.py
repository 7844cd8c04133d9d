"""`mapet protocols`: how figures are taken."""

from __future__ import annotations

from typing import Annotated

import typer


def protocols(
    name: Annotated[str | None, typer.Argument(help="Print this one, or all settings of NAME:PRESET.")] = None,
) -> None:
    """List the protocols with the hash of every preset, or print one: its settings and where they come from."""
    from mapet.evaluation.presets import PROTOCOLS, preset_source, preset_text, presets_of, protocol_of, summary

    if name is not None and (":" in name or not presets_of(name)):
        protocol = protocol_of(name)
        print(f"# {protocol.title}, protocol {protocol.hash}")
        if protocol.preset and (source := preset_source(*protocol.title.split(":"))):
            print(source)
        for setting, value in protocol.describe().items():
            print(f"{setting}: {value}")
        return
    if name is not None:
        print(preset_text(name), end="")
        print(f"# With the settings that are not named here: mapet protocols {name}:{next(iter(presets_of(name)))}")
        return
    for kind in PROTOCOLS:
        print(f"{kind:12} {summary(kind)}")
        for title in [f"{kind}:{preset}" for preset in presets_of(kind)] or [kind]:
            protocol = protocol_of(title)
            print(f"    {protocol.title:28} protocol {protocol.hash}")
    print("On several data sets: mapet evaluate transfer:PROTOCOL BACKBONE cars,food101 --root FOLDER")
