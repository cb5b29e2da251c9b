"""Reading the files that demonstrations consist of, so that every bad one gives one sentence that names it.

Three formats, each opened once: the arrays of a compressed frame (``.npz``), a list of records (``.json``, streamed),
and CALVIN's pickled annotations (``.npy``, with nothing but numbers and plain containers allowed inside).
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from models.processing.image_file import as_shown
from training.data.formats.npz import QuickNpz
from training.data.formats.packed_frames import packed_frame
from training.data.formats.video_frames import read_video_frame, video_frame
from training.data.formats.zip_reader import is_file, open_binary

CHUNK = 1 << 22  # characters read at a time from a JSON list

# What zipfile, zlib, NumPy and PIL were seen to raise for damaged bytes (tests/data/test_readers.py flips them).
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    KeyError,
    NotImplementedError,
    RuntimeError,  # zipfile: "File is encrypted"
    SyntaxError,  # the array header is a Python literal
    tokenize.TokenError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
    MemoryError,  # a flipped bit in the header asks for terabytes
    OSError,
)


def read_npz(
    path: Path, keys: Sequence[str], instead: Mapping[str, Sequence[str]] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """The arrays ``keys`` of one ``.npz``, with one open of the file; no other array is decompressed. Of a packed frame
    they are views of a mapped file, which cannot be written to.

    ``instead`` names what to read where a key is absent: {"rel_actions": ("actions", "robot_obs")}.
    Raises FileNotFoundError or ValueError naming the file, the missing key and what the file has.
    """
    if (packed := packed_frame(path)) is not None:
        pack, row = packed
        present = set(pack.keys)
        wanted, missing = _chosen(keys, present, instead)
        if not missing:
            return pack.arrays(row, wanted)
        raise _lacking(path, missing, present)
    try:
        with open_binary(path) as file:
            quick = QuickNpz.of(file)
            if quick is not None:
                wanted, missing = _chosen(keys, quick.names, instead)
                if not missing and (arrays := quick.arrays(wanted)) is not None:
                    return arrays
            file.seek(0)
            with np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
                present = set(archive.files)
                wanted, missing = _chosen(keys, present, instead)
                if not missing:
                    return {key: archive[key] for key in wanted}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; fetch or record it, or remove its episode") from None
    except _DAMAGED as error:
        raise ValueError(
            f"{path} cannot be read ({_first_line(error)}); fetch or record it again, or remove its episode"
        ) from None
    raise _lacking(path, missing, present)


def _chosen(
    keys: Sequence[str], present: set[str], instead: Mapping[str, Sequence[str]] | None
) -> tuple[list[str], list[str]]:
    """(what to read, what of it is not there)."""
    wanted: dict[str, None] = {}
    for key in keys:
        wanted |= dict.fromkeys((key,) if key in present else (instead or {}).get(key, (key,)))
    return list(wanted), [key for key in wanted if key not in present]


def _lacking(path: Path, missing: Sequence[str], present: set[str]) -> ValueError:
    names = ", ".join(sorted(present)) or "nothing"
    return ValueError(f"{path} lacks {' and '.join(map(repr, missing))}; it has {names}")


def npz_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name -> (shape, dtype) of every array of an ``.npz``, from their headers alone. Raises as ``read_npz``."""
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as packed:
            for name in packed.namelist():
                with packed.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                    shape, _, dtype = (header or np.lib.format.read_array_header_2_0)(member)
                found[name.removesuffix(".npy")] = (shape, dtype)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; fetch or record it, or remove its episode") from None
    except _DAMAGED as error:
        raise ValueError(f"{path} cannot be read ({_first_line(error)}); fetch or record it again") from None
    return found


LLAVA_NAME = "llava_v1_5_mix665k.json"  # the list of conversations in a folder of them
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name. Raises ``ValueError`` when there is none."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return files


def read_image(path: Path) -> Image.Image:
    """An RGB image as viewers show it (``models.processing.image_file``). Raises FileNotFoundError or ValueError
    naming the file."""
    if (filmed := video_frame(path)) is not None:
        return Image.fromarray(read_video_frame(*filmed))
    try:
        with open_binary(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except _DAMAGED as error:
        raise ValueError(f"{path} cannot be decoded as an image ({_first_line(error)})") from None
    return read_image_bytes(content, str(path))


def read_image_bytes(content: bytes, where: str) -> Image.Image:
    """An RGB image out of an encoded one. Raises ValueError beginning with ``where``."""
    try:
        if content.startswith(_PNG):
            _check_png(content)
        with Image.open(io.BytesIO(content)) as image:
            return as_shown(image)
    except UnidentifiedImageError:  # it would name an object in memory
        raise ValueError(f"{where} cannot be decoded as an image (it is of no known format)") from None
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be decoded as an image ({_first_line(error)})") from None


_PNG = b"\x89PNG\r\n\x1a\n"


def _check_png(content: bytes) -> None:
    """Compare the images' chunks with their checksums: PIL decodes past a wrong one."""
    at = len(_PNG)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        if zlib.crc32(body) != int.from_bytes(content[at + 8 + length : at + 12 + length], "big"):
            raise ValueError("a part of it does not match its checksum")
        if body[:4] == b"IEND":
            return
        at += 12 + length
    raise ValueError("it is cut off")


def iterate_json_list(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON file that is one list of objects, one at a time, in memory that does not grow with it.

    Raises ValueError naming the file and the place when it is not such a list.
    """
    for number, record in enumerate(iterate_json_values(path)):
        if not isinstance(record, dict):
            raise ValueError(f"{path} must be a JSON list of objects; record {number} is a {type(record).__name__}")
        yield record


def iterate_json_values(path: Path) -> Iterator[Any]:
    """Yield the values of a JSON file that is one list, as ``iterate_json_list`` does its objects."""
    decoder = json.JSONDecoder(parse_int=_integer)
    with _open_text(path) as file:
        reader = _Buffer(file, path)
        if reader.peek() != "[":
            raise ValueError(f"{path} must be a JSON list of objects, but begins with {reader.peek()!r}")
        reader.position += 1
        first = True
        while (mark := reader.peek()) != "]":
            if not first:
                if mark != ",":
                    raise ValueError(f"{path} is not valid JSON at character {reader.offset}: expected ',' or ']'")
                reader.position += 1
                reader.peek()
            first = False
            yield reader.decode(decoder)
        reader.position += 1
        if reader.peek() != "":
            raise ValueError(f"{path} is not valid JSON: text follows the list, at character {reader.offset}")


def _integer(digits: str) -> int | float:
    """Python refuses to read an integer of more than 4,300 digits."""
    return int(digits) if len(digits) < 1000 else float(digits)


class _Buffer:
    """A window on a text file that grows when a record does not fit and forgets what was read."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        self.text, self.position, self.forgotten = "", 0, 0

    @property
    def offset(self) -> int:
        return self.forgotten + self.position

    def more(self, amount: int = CHUNK) -> bool:
        try:
            piece = self.file.read(amount)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 text ({error.reason} after character {self.offset})") from None
        self.forgotten += self.position
        self.text, self.position = self.text[self.position :] + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not white space; '' at the end of the file."""
        while True:
            while self.position < len(self.text):
                if not self.text[self.position].isspace():
                    return self.text[self.position]
                self.position += 1
            if not self.more():
                return ""

    def decode(self, decoder: json.JSONDecoder) -> Any:
        amount = CHUNK
        while True:
            try:
                record, end = decoder.raw_decode(self.text, self.position)
                length = end - self.position
                # A number may continue behind the window's end: "1", "1.", "1e+".
                if end + 2 < len(self.text) or not self.more(amount):
                    self.position += length
                    return record
                amount *= 2
            except json.JSONDecodeError as error:
                # A cut record fails at the window's end; twice the window each time keeps retries few.
                wrong = (error.msg, self.forgotten + error.pos)
                if not self.more(amount):
                    message = f"{self.path} is not valid JSON at character {wrong[1]}: {wrong[0]}"
                    raise ValueError(message) from None
                amount *= 2
            except RecursionError:
                raise ValueError(f"{self.path} is nested too deeply at character {self.offset}") from None


def _open_text(path: Path) -> Any:
    try:
        return io.TextIOWrapper(open_binary(path), encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None


_ALLOWED = {
    "builtins": {"list", "dict", "tuple", "set", "frozenset", "str", "int", "float", "bool", "bytes", "bytearray"},
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},  # how protocol 2 writes bytes
    "numpy": {"ndarray", "dtype"},
    **{
        module: {"_reconstruct", "scalar", "_frombuffer"}
        for module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
            "numpy.core.numeric",
            "numpy._core.numeric",
        )
    },
}


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, arrays and plain containers; anything else in the stream is refused before it is run."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which annotation data never needs")
        if module == "_codecs":
            return _encode_latin1
        return super().find_class(module, name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


def read_pickled_npy(path: Path) -> Any:
    """The one object inside a pickled ``.npy`` (CALVIN saves dictionaries so), without running foreign code.

    Raises FileNotFoundError or ValueError naming the file.
    """
    if not is_file(path):
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with open_binary(path) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                raise ValueError(f"npy format version {version}")
            _, _, dtype = read_header[version](file)
            if not dtype.hasobject:
                raise ValueError(f"it holds an array of {dtype}, not a pickled object")
            held = _PlainUnpickler(file).load()
    except (*_DAMAGED, pickle.UnpicklingError, ImportError) as error:
        raise ValueError(f"{path} cannot be read as pickled annotations: {_first_line(error)}") from None
    return held.item() if isinstance(held, np.ndarray) and held.ndim == 0 else held


def read_pickle(path: Path) -> Any:
    """The object in a pickled file of numbers, texts, arrays and plain containers, without running foreign code.

    Raises FileNotFoundError or ValueError naming the file.
    """
    try:
        with open_binary(path) as file:
            return _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (*_DAMAGED, pickle.UnpicklingError, ImportError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as pickled numbers: {_first_line(error)}") from None


def read_npy(path: Path) -> npt.NDArray[Any]:
    """A plain ``.npy`` array. Raises FileNotFoundError or ValueError naming the file."""
    try:
        with open_binary(path) as file:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except _DAMAGED as error:
        raise ValueError(f"{path} cannot be read as an array: {_first_line(error)}") from None
    return array


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
