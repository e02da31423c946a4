"""Thumbnails by Pillow, whose C code decodes pictures from untrusted sources. It needs `pip install pillow`.

    taskfork serve --listen unix:/tmp/thumbnails.sock --limit address-space=1GiB \\
        -- python3 examples/python_worker/thumbnails.py
"""

import io

from PIL import Image
from taskfork.worker import serve


def info(image: bytes) -> dict:
    with Image.open(io.BytesIO(image)) as opened:
        return {"format": opened.format, "width": opened.width, "height": opened.height}


def thumbnail(image: bytes, longest: int) -> bytes:
    """The same picture as PNG, no side longer than `longest`."""
    with Image.open(io.BytesIO(image)) as opened:
        opened.thumbnail((longest, longest))
        out = io.BytesIO()
        opened.save(out, "PNG")
        return out.getvalue()


def gradient(width: int, height: int) -> bytes:
    """A picture for trying the other functions."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    serve([info, thumbnail, gradient])
