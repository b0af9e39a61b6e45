"""Random changes of files, for `tests.attacks.fuzz`."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attacks.tars import BLOCK
from tests.bundles import FOLDER, compress, decompress, members, pack, resigned

_VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, "", 0, -1, 1.5, 1 << 40, 1 << 70, "\0", "\ud800", "../x", "/etc/passwd"),
    *("x" * 300, [[]], {"a": {}}, "9" * 400, "float32", "\x1b[2J"),
)
_TOKENS = (
    b"\xff",
    b"\0",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"-1",
    b"../",
    b"99999999999",
    b"{",
    b"[" * 99,
)

Mutate = Callable[[random.Random, Path], None]


def mutate_bytes(chance: random.Random, content: bytes) -> bytes:
    """Returns a content with a few random changes."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        start = chance.randrange(len(changed) + 1)
        end = min(len(changed), start + chance.choice((1, 2, 8, 64, 1000)))
        kind = chance.randrange(7)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[start:end] = chance.randbytes(end - start)
        elif kind == 2:
            del changed[start:end]
        elif kind == 3:
            changed[start:start] = changed[start:end]
        elif kind == 4:
            token = chance.choice(_TOKENS)
            changed[start : start + len(token)] = token
        elif kind == 5 and chance.random() < 0.2:
            del changed[start:]
        elif start < len(changed):
            changed[start] = chance.choice((0, 1, 127, 128, 255))
    return bytes(changed)


def mutate_json(chance: random.Random, value: Any) -> Any:
    """Returns a JSON value with one part replaced, removed or added."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = chance.choice(list(keys))
        copy: Any = value.copy()
        if chance.random() < 0.1:
            del copy[key]
        elif isinstance(value, dict) and chance.random() < 0.05:
            copy[str(chance.choice(_VALUES))] = copy.pop(key)
        else:
            copy[key] = mutate_json(chance, value[key])
        return copy
    return chance.choice(_VALUES)


def _json_text(chance: random.Random, content: bytes) -> bytes:
    if chance.random() < 0.2:
        return mutate_bytes(chance, content)
    return json.dumps(mutate_json(chance, json.loads(content))).encode()


def mutate_copy(source: Path) -> Mutate:
    """Changes the bytes of a file."""
    return lambda chance, path: _write(path, mutate_bytes(chance, source.read_bytes()))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def mutate_zip(source: Path) -> Mutate:
    """Changes the bytes of an archive, or the content of one of its members."""

    def mutate(chance: random.Random, path: Path) -> None:
        if chance.random() < 0.5:
            path.write_bytes(mutate_bytes(chance, source.read_bytes()))
            return
        with zipfile.ZipFile(source) as good, zipfile.ZipFile(path, "w") as bad:
            infos = [info for info in good.infolist() if info.file_size]
            texts = [info for info in infos if info.filename.endswith(("json", "meta.npy"))]
            chosen = chance.choice(texts if texts and chance.random() < 0.7 else infos)
            for info in good.infolist():
                content = good.read(info)
                if info is chosen:
                    text = info.filename.endswith("json")
                    content = _json_text(chance, content) if text else mutate_bytes(chance, content)
                bad.writestr(info, content)

    return mutate


def mutate_bundle(source: Path) -> Mutate:
    """Changes the manifest or a record of a bundle, and gives it digests that match."""
    contents = members(source)
    texts = [name for name in contents if name.endswith(".json")]

    def mutate(chance: random.Random, path: Path) -> None:
        name = chance.choice([f"{FOLDER}/manifest.json", *texts])
        changed = {**contents, name: _json_text(chance, contents[name])}
        try:
            changed = resigned(changed)
        except (ValueError, TypeError, KeyError, AttributeError):
            changed = resigned(contents)
        pack(path, list(changed.items()))

    return mutate


def mutate_tar(source: Path) -> Mutate:
    """Changes the headers of a tar, or its bytes, or the bytes of the compressed file."""
    plain = decompress(source.read_bytes())

    def mutate(chance: random.Random, path: Path) -> None:
        kind = chance.random()
        if kind < 0.2:
            path.write_bytes(mutate_bytes(chance, source.read_bytes()))
            return
        content = bytearray(plain)
        starts = [
            at for at in range(0, len(plain), BLOCK) if plain[at + 257 : at + 262] == b"ustar"
        ]
        start = chance.choice(starts)
        field, length = chance.choice(
            ((0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 99))
        )
        content[start + field : start + field + length] = mutate_bytes(
            chance, bytes(content[start + field : start + field + length])
        )[:length].ljust(length, b"\0")
        if kind < 0.8:
            content[start + 148 : start + 156] = b" " * 8
            total = sum(content[start : start + BLOCK])
            content[start + 148 : start + 156] = b"%06o\0 " % total
        path.write_bytes(compress(bytes(content)))

    return mutate


def mutate_images(folder: Path) -> Mutate:
    """Makes an image folder with a mutated image."""
    from PIL import Image

    folder.mkdir()
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "ppm"):
        Image.effect_noise((24, 24), 50).convert("RGB").save(folder / f"good.{suffix}")

    def mutate(chance: random.Random, path: Path) -> None:
        for label in ("cat", "dog"):
            (path / label).mkdir(parents=True)
            for number in range(2):
                shutil.copy(folder / "good.png", path / label / f"{number}.png")
        source = chance.choice(sorted(folder.iterdir()))
        (path / "cat" / f"bad{source.suffix}").write_bytes(
            mutate_bytes(chance, source.read_bytes())
        )

    return mutate
