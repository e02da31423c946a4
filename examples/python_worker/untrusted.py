"""Thumbnails by Pillow for pictures of strangers. `sandbox.rs` beside this file runs it under `Sandbox::python()`."""

import io

from PIL import Image
from taskfork.worker import serve

# Pillow loads its decoders when they are first needed. Now is the time: later no picture can delay it.
Image.init()


def gradient(width: int, height: int, kind: str) -> bytes:
    """A picture for trying the other functions."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(out, kind)
    return out.getvalue()


def thumbnail(image: bytes, longest: int) -> bytes:
    """The same picture as PNG, no side longer than `longest`."""
    with Image.open(io.BytesIO(image)) as opened:
        opened.thumbnail((longest, longest))
        out = io.BytesIO()
        opened.save(out, "PNG")
        return out.getvalue()


def steal(path: str) -> bytes:
    """What code of an attacker would do."""
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    serve([gradient, thumbnail, steal])
