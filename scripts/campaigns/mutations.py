"""Ways to spoil files: by bytes, by the places of a JSON or YAML tree, by numbers, by what a format's header says."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np

from tensorf.official.reading import unpickled

ODD_NUMBERS = (0, -1, 1, 2, -7, 10**18, 2**63, -(2**31), 0.5, 1e-30, 1e308, -1e308, float("nan"), float("inf"))
ODD_TEXTS = (
    "",
    " ",
    "x",
    "../../x",
    "/",
    "nan",
    "a\nb",
    "\0",
    "\ud7ff",
    "💐",
    "${scene}",
    "~",
    "x" * 5000,
    "-1",
    "[",
    "%s",
)
_WORDS_64 = (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def bytes_of(data: bytes, chance: random.Random) -> bytes:
    """Cut, emptied, overwritten, lengthened, or turned around somewhere."""
    where = chance.randrange(len(data) + 1)
    length = chance.choice((1, 2, 8, 64, 1024))
    noise = chance.randbytes(length)
    kinds = (
        lambda: data[:where],
        lambda: b"",
        lambda: data[:where] + noise + data[where + length :],
        lambda: data[:where] + noise + data[where:],
        lambda: data[:where] + data[where + length :],
        lambda: data[:where] + b"\0" * length + data[where + length :],
        lambda: data[:where] + b"\xff" * length + data[where + length :],
        lambda: data + noise,
        lambda: data[where:] + data[:where],
        lambda: noise,
        lambda: b"\xff\xfe" + data,
        lambda: data[:8] + data[: chance.randrange(8, 64)],
    )
    return chance.choice(kinds)()


def tree(root, chance: random.Random):
    """A copy of nested dicts and lists with one or two places spoiled."""
    root = copy.deepcopy(root)
    for _ in range(chance.choice((1, 1, 1, 2))):
        places = list(_places(root))
        if not places:
            return chance.choice(_odd_values(chance))
        parent, key = chance.choice(places)
        act = chance.randrange(8)
        if act == 0:
            del parent[key]
        elif act == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif act == 2 and isinstance(parent, dict):
            parent[chance.choice(ODD_TEXTS)] = parent.pop(key)
        elif act == 3:
            parent[key] = [parent[key]]
        elif act == 4:
            parent[key] = str(parent[key])
        else:
            parent[key] = chance.choice(_odd_values(chance))
    return root if chance.random() > 0.03 else chance.choice(_odd_values(chance))


def _places(node):
    if isinstance(node, (dict, list)):
        for key in list(node.keys() if isinstance(node, dict) else range(len(node))):
            yield node, key
            yield from _places(node[key])


def _odd_values(chance: random.Random) -> list:
    deep = None
    for _ in range(300):
        deep = [deep]
    return [
        None,
        True,
        [],
        {},
        [1, "x"],
        {"a": None},
        deep,
        *chance.sample(ODD_NUMBERS, 5),
        *chance.sample(ODD_TEXTS, 4),
    ]


def json_file(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.25:
        return bytes_of(data, chance)
    return _text(json.dumps(tree(json.loads(data), chance)))


def yaml_file(data: bytes, chance: random.Random) -> bytes:
    import yaml

    if chance.random() < 0.3:
        return bytes_of(data, chance)
    spoiled = tree(yaml.safe_load(data), chance)
    return _text(yaml.safe_dump(spoiled, allow_unicode=chance.random() < 0.5))


def _text(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def array_file(data: bytes, chance: random.Random) -> bytes:
    """A .npy file of another shape, type or content."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    flat = array.copy()
    flat.flat[chance.randrange(flat.size)] = chance.choice((np.nan, np.inf, 0.0, -1.0, 1e300, 1e-300))
    kinds = (
        lambda: flat,
        lambda: array[: chance.randrange(len(array))],
        lambda: array[:, : chance.randrange(array.shape[1])],
        lambda: array.T,
        lambda: array[0],
        lambda: np.zeros_like(array),
        lambda: array * chance.choice((-1, 0, 1e-20, 1e20, np.nan)),
        lambda: array.astype(chance.choice(("int8", "complex128", "float16", "U8", "bool"))),
        lambda: np.array([{"a": 1}], dtype=object),
        lambda: np.repeat(array[:1], len(array), 0),
        lambda: np.array(3.0),
        lambda: array[None],
    )
    if chance.random() < 0.3:
        return bytes_of(data, chance)
    if chance.random() < 0.15:  # a header that promises more than there is
        return re.sub(rb"\((\d+),", lambda found: b"(%d," % (int(found[1]) * 10), data, count=1)
    file = io.BytesIO()
    np.save(file, chance.choice(kinds)(), allow_pickle=True)
    return file.getvalue()


def binary_file(data: bytes, chance: random.Random) -> bytes:
    """Little-endian counts, numbers and sizes replaced where they may stand."""
    if chance.random() < 0.4 or len(data) < 16:
        return bytes_of(data, chance)
    where = chance.choice((0, 8, chance.randrange(len(data) - 8)))
    value = chance.choice((
        struct.pack("<Q", chance.choice(_WORDS_64)),
        struct.pack("<d", float(chance.choice(ODD_NUMBERS))),
        struct.pack("<i", chance.choice((-1, 0, 99, 2**31 - 1))),
    ))  # fmt: skip
    return data[:where] + value + data[where + len(value) :]


def text_file(data: bytes, chance: random.Random) -> bytes:
    """Words and lines replaced, left out, doubled."""
    if chance.random() < 0.3:
        return bytes_of(data, chance)
    lines = data.decode().split("\n")
    row = chance.randrange(len(lines))
    words = lines[row].split(" ")
    word = chance.randrange(len(words))
    act = chance.randrange(5)
    if act == 0:
        del lines[row]
    elif act == 1:
        lines.insert(row, lines[row])
    else:
        if act == 2:
            del words[word]
        else:
            words[word] = str(chance.choice((*ODD_NUMBERS, *ODD_TEXTS)))
        lines[row] = " ".join(words)
    return _text("\n".join(lines))


def picture_file(data: bytes, chance: random.Random) -> bytes:
    """Another mode, size, kind or depth than the picture had, or a header that lies."""
    from PIL import Image

    if chance.random() < 0.35:
        return bytes_of(data, chance)
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if chance.random() < 0.3:
        return _lying_png(picture, chance)
    mode = chance.choice(("RGB", "L", "1", "P", "LA", "RGBA", "I;16", "CMYK", "F"))
    size = chance.choice((picture.size, picture.size, (1, 1), (1, 400), (picture.width, 7), (63, 64)))
    picture = picture.resize(size)
    picture = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
    file = io.BytesIO()
    kind = {"CMYK": "JPEG", "F": "TIFF"}.get(mode) or chance.choice(("PNG", "PNG", "TIFF"))
    picture.save(file, kind)
    return file.getvalue()


def _lying_png(picture, chance: random.Random) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = bytearray(file.getvalue())
    sizes = (0, 1, 7, 5000, 60000, 2**31 - 1, 2**32 - 1)
    header = struct.pack(">II", chance.choice(sizes), chance.choice(sizes))
    header += bytes([chance.choice((8, 16, 1, 3)), chance.choice((2, 0, 3, 6, 9)), 0, 0, chance.choice((0, 1, 7))])
    data[16:29] = header
    data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return bytes(data)


def tensors_file(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says something else."""
    if chance.random() < 0.4:
        return bytes_of(data, chance)
    length = int.from_bytes(data[:8], "little")
    if chance.random() < 0.15:
        return struct.pack("<Q", chance.choice((*_WORDS_64, length - 1, length + 1))) + data[8:]
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if "field" in metadata and chance.random() < 0.6:
        metadata["field"] = json.dumps(tree(json.loads(metadata["field"]), chance))
    else:
        header = tree(header, chance)
    text = _text(json.dumps(header))
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def checkpoint_file(data: bytes, chance: random.Random) -> bytes:
    """A checkpoint of torch.save with other values, keys and tensors, in the old format, or a foreign pickle."""
    import torch

    if chance.random() < 0.25:
        return bytes_of(data, chance)
    table = unpickled(io.BytesIO(data))
    act = chance.randrange(8)
    if act == 0:
        table = chance.choice((print, np.zeros(3, object), {"kwargs": print, "state_dict": {}}, torch.nn.Linear(2, 2)))
    elif act < 4:
        _spoil_tensor(table, chance)
    else:
        table = tree(table, chance)
    file = io.BytesIO()
    torch.save(table, file, _use_new_zipfile_serialization=chance.random() < 0.8)
    return file.getvalue()


def _spoil_tensor(table: dict, chance: random.Random) -> None:
    """Another shape, type or content for one of a checkpoint's tensors and arrays, wherever it stands."""
    import torch

    places = [(p, k) for p, k in _places(table) if isinstance(p[k], (torch.Tensor, np.ndarray))]
    parent, key = chance.choice(places)
    tensor = torch.as_tensor(parent[key])
    odd = tensor.clone().reshape(-1)
    odd[chance.randrange(len(odd))] = chance.choice(
        (0, 1, 255, *((math.nan, math.inf, -1e30) if odd.is_floating_point() else ()))
    )
    kinds = (
        lambda: odd.view(tensor.shape),
        lambda: tensor[: len(tensor) // 2],
        lambda: tensor[None],
        lambda: tensor.mT if tensor.ndim > 1 else tensor[0],
        lambda: torch.zeros_like(tensor),
        lambda: torch.cat([tensor, tensor]),
        lambda: tensor[..., :1].expand(tensor.shape),
        lambda: tensor.to(chance.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64))),
        lambda: tensor.to_sparse(),
        lambda: torch.empty(0),
        lambda: torch.zeros(1).expand(chance.choice((10**6, 2**40))),  # a few bytes that say that they are many
        lambda: tensor.float() * chance.choice((-1, 1e-30, 1e30)),
        lambda: tensor.numpy(),
        lambda: tensor.tolist(),
    )
    parent[key] = chance.choice(kinds)()


Spoil = Callable[[bytes, random.Random], bytes]
