"""msgpack with arrays and images, parsed defensively: a message may come from an attacker.

No message can run code: no pickle, no extension types, numeric dtypes only. Declared dtypes, shapes and image sizes are
compared with the data before anything is allocated for them.

Arrays are maps with the keys `__ndarray__`, `data`, `dtype`, `shape` (vla-eval: texts, openpi: bytes); images of
vla-eval are maps with `__image__`, `format` (raw, jpeg, png), `data`, `shape`, and `dtype` where raw.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.processing.image_file import as_shown

_DTYPE = re.compile(r"[<>|=]?[biuf][1248]")
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 4096
"""Of one msgpack list or map. Longer data are sent as arrays; larger counts could make the parser allocate."""
_ENCODED = {"png": "PNG", "jpeg": "JPEG"}
_BROKEN_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""Exceptions that PIL raises for damaged files."""


class WireError(ValueError):
    """An invalid message; its text is one line and can be sent to the client."""


@dataclass(frozen=True)
class Limits:
    """Limits of a client's messages and of the number of clients."""

    message_bytes: int = 8 << 20
    """Of one message; two 200 x 200 images take 0.2 MB."""
    pixels: int = 1 << 22
    """Of one image, before it is decoded."""
    instruction_chars: int = 1000
    sessions: int = 64
    """Open at once."""


@dataclass(frozen=True)
class EncodedImage:
    """A png or jpeg that is not decoded yet: most observations arrive while a chunk is being executed."""

    format: str
    data: bytes
    shape: tuple[int, ...]

    def decoded(self) -> NDArray[np.uint8]:
        """Return uint8 [H, W, 3]. Raises `WireError` if the image is damaged or has another shape than declared."""
        try:
            with Image.open(io.BytesIO(self.data), formats=[_ENCODED[self.format]]) as image:
                if (image.height, image.width) != self.shape[:2] or image.mode != "RGB":
                    raise WireError(
                        f"a {self.format} declares {list(self.shape)}, but is {image.height} x {image.width} "
                        f"{image.mode}"
                    )
                pixels: NDArray[np.uint8] = np.asarray(as_shown(image), dtype=np.uint8)
        except WireError:
            raise
        except _BROKEN_IMAGE as error:
            raise WireError(f"a {self.format} cannot be decoded ({type(error).__name__})") from None
        if pixels.shape != self.shape:
            raise WireError(f"a {self.format} declares {list(self.shape)}, but is shown as {list(pixels.shape)}")
        return pixels


WireImage = EncodedImage | NDArray[np.uint8]


def unpack(data: bytes, limits: Limits) -> Any:
    """Return the value of a message, with arrays and images decoded to objects. Raises `WireError`."""

    def read(found: dict[Any, Any]) -> Any:
        if "__image__" in found:
            return _image(found, limits)
        if "__ndarray__" in found:
            return _array(found)
        if b"__ndarray__" in found:
            return _array({key.decode("latin1"): value for key, value in found.items() if isinstance(key, bytes)})
        if b"__npgeneric__" in found:
            return found.get(b"data")
        return found

    try:
        return msgpack.unpackb(
            data,
            object_hook=read,
            raw=False,
            strict_map_key=True,
            max_array_len=_MAX_ELEMENTS,
            max_map_len=_MAX_ELEMENTS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not a msgpack message: {error}"[:200]) from None


def pack(value: Any, *, bytes_keys: bool = False) -> bytes:
    """Return a message; `bytes_keys`: encode arrays as openpi does, else as vla-eval does."""

    def write(array: object) -> Any:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"cannot be sent: {type(array).__name__}")
        entry = {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}
        return {key.encode(): item for key, item in entry.items()} if bytes_keys else entry

    packed: bytes = msgpack.packb(value, default=write, use_bin_type=True)
    return packed


def pixels(image: object, name: str, limits: Limits) -> NDArray[np.uint8]:
    """Return an image as uint8 [H, W, 3]. Raises `WireError` naming it if it is invalid."""
    if isinstance(image, EncodedImage):
        return image.decoded()
    check_image(image, name, limits)
    assert isinstance(image, np.ndarray)
    return image


def check_image(image: object, name: str, limits: Limits) -> None:
    """Check an image without decoding it. Raises `WireError`."""
    if isinstance(image, EncodedImage):
        return
    if not isinstance(image, np.ndarray):
        raise WireError(f"{name} must be an image, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise WireError(f"{name} must be uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
    _check_pixels(image.shape, limits)


def _check_pixels(shape: tuple[int, ...], limits: Limits) -> None:
    if shape[0] * shape[1] > limits.pixels:
        raise WireError(
            f"an image of {shape[0]} x {shape[1]} has more than the {limits.pixels} pixels that this server takes"
        )


def _shape(value: object) -> tuple[int, ...]:
    sizes = value if isinstance(value, (list, tuple)) else [None]
    if len(sizes) > _MAX_DIMENSIONS or any(type(size) is not int or not 0 <= size < 1 << 31 for size in sizes):
        raise WireError("an array's shape must be a list of at most 8 sizes")
    return tuple(sizes)


def _array(entry: Mapping[str, Any]) -> NDArray[Any]:
    name, data, shape = entry.get("dtype"), entry.get("data"), _shape(entry.get("shape"))
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"an array of dtype {str(name)[:40]!r}: only numbers and booleans are read")
    try:
        dtype = np.dtype(name)
    except TypeError:
        raise WireError(f"dtype {name!r} does not exist") from None
    count = 1
    for size in shape:
        count *= size
    if not isinstance(data, bytes) or count * dtype.itemsize != len(data):
        length = len(data) if isinstance(data, bytes) else "no"
        raise WireError(f"an array declares {name} {list(shape)}, which does not match its {length} bytes of data")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _image(entry: Mapping[str, Any], limits: Limits) -> WireImage:
    kind, data, shape = entry.get("format"), entry.get("data"), _shape(entry.get("shape"))
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise WireError(f"an image must be [height, width, 3], got {list(shape)}")
    _check_pixels(shape, limits)
    if kind == "raw":
        array = _array(entry)
        check_image(array, "a raw image", limits)
        return array
    if kind not in _ENCODED or not isinstance(data, bytes):
        raise WireError(f"an image's format must be raw, jpeg or png, with bytes as data; got {str(kind)[:40]!r}")
    return EncodedImage(kind, data, shape)
