"""Image files written byte by byte, of kinds that Pillow reads and does not write."""

import struct
import zlib

import numpy as np

_TYPES = {(8, 1): "u1", (16, 1): "u2", (32, 1): "u4", (8, 2): "i1", (16, 2): "i2", (32, 3): "f4"}
_WHOLE, _LONG = 3, 4


def tiff(
    pixels: np.ndarray, bits: int, photometric: int, planes: int = 1, kind: int = 1, extra: int | None = None, orientation: int = 1
) -> bytes:
    """A little-endian TIFF without compression.

    Args:
        pixels: (H, W) or (H, W, C), in the numbers that are stored.
        bits: Of a number; 12 are packed.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK.
        planes: 1 colours side by side, 2 one plane each.
        kind: 1 without sign, 2 with sign, 3 floating point.
        extra: Meaning of a last channel: 1 premultiplied alpha, 2 alpha.
        orientation: As in EXIF.
    """
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, channels = pixels.shape
    parts = [_packed(part, bits, kind) for part in (np.moveaxis(pixels, 2, 0) if planes == 2 else [pixels])]
    tags = {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (_WHOLE, [bits] * channels),
        259: (_WHOLE, [1]),
        262: (_WHOLE, [photometric]),
        273: (_LONG, [0] * len(parts)),
        274: (_WHOLE, [orientation]),
        277: (_WHOLE, [channels]),
        278: (_LONG, [height]),
        279: (_LONG, [len(part) for part in parts]),
        284: (_WHOLE, [planes]),
        339: (_WHOLE, [kind] * channels),
        **({} if extra is None else {338: (_WHOLE, [extra])}),
    }
    begin = 8 + len(_directory(tags))
    tags[273] = (_LONG, [begin + sum(map(len, parts[:number])) for number in range(len(parts))])
    return b"II" + struct.pack("<HI", 42, 8) + _directory(dict(sorted(tags.items()))) + b"".join(parts)


def _packed(part: np.ndarray, bits: int, kind: int) -> bytes:
    if bits != 12:
        return part.astype("<" + _TYPES[bits, kind]).tobytes()
    rows = ["".join(f"{number:012b}" for number in row.ravel()) for row in part]
    return b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)


def _directory(tags: dict[int, tuple[int, list[int]]]) -> bytes:
    entries, values, begin = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in tags.items():
        value = struct.pack(f"<{len(numbers)}{'H' if kind == _WHOLE else 'I'}", *numbers)
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", begin + len(values))
        values += value if len(value) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + place
    return struct.pack("<H", len(tags)) + entries + bytes(4) + values


def png(rows: list[bytes], width: int, bits: int, color: int, *chunks: tuple[bytes, bytes], height: int = 0) -> bytes:
    """A PNG of packed rows.

    Args:
        rows: Of the image, without filters.
        width: In pixels.
        bits: Of a number.
        color: 0 grey, 2 RGB, 3 palette, 4 grey and alpha.
        chunks: Names and contents of those between header and pixels.
        height: To claim another one than there are rows.
    """
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height or len(rows), bits, color, 0, 0, 0))
    pixels = (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, [header, *chunks, pixels, (b"IEND", b"")]))


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, content = chunk
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
