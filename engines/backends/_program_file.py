"""Checks the file of an exported program before torch reads it.

`torch.export.load` can run code that a file holds: it unpickles sample inputs and objects,
evaluates symbolic sizes as Python (`sympy.sympify`), finds operators by their path below `torch`
(which reaches `torch.os.system`), writes names into source code that it executes, and executes
guards. A program that assay saves needs none of this, so only what it does need is accepted.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Members of the archive, below its one folder.
_MEMBERS = re.compile(
    r"data/(weights/weight_\d+|constants/tensor_\d+)"
    r"|data/(weights/model_weights|constants/model_constants)_config\.json"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/assay_signature\.json"
    r"|archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
)
_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MAX_JSON_BYTES = 256 << 20
_MAX_DEPTH = 60

_OPERATORS = (
    # An operator of a library, with its overload; never the functions of torch.ops itself.
    re.compile(
        r"torch\.ops\.[a-z]\w*"
        r"\.(?!_?from_file|load_)(?:_?[a-zA-Z]\w*|__i?(?:and|or|xor|lshift|rshift)__)"
        r"\.[a-zA-Z]\w*"
    ),
    re.compile(r"torch\.ops\.higher_order\.[a-z]\w*"),
    re.compile(r"torch\.(sym_[a-z]+|_sym_sqrt|_check\w*)"),
    re.compile(
        r"_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|or_|pos|pow|sub"
        r"|truediv)"
    ),
    re.compile(r"math\.[a-z]\w*"),
)
_SYMBOL = re.compile(r"[a-z]+\d+|[a-z]\w*")
# Classes of sympy and torch.utils._sympy.functions that build an expression of sizes.
_EXPRESSIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Mul|Add|Pow|Abs|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv"
    r"|CeilToInt|FloorToInt|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|TruncToFloat|RoundToInt"
    r"|RoundDecimal|ModularIndexing|Where|PowByNatural|FloatPow|LShift|RShift|Identity|Equality"
    r"|Unequality|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|And|Or|Not"
    r"|true|false|oo|int_oo|zoo|nan"  # and its constants
    r"|[suz]f?\d+"  # and symbols
)
# Names of values and arguments stand in generated code; those of modules and weights in its texts.
_NAME, _PATH = re.compile(r"\w*"), re.compile(r"[\w.:/@+ -]*")
# Text that torch neither evaluates nor writes into code.
_FREE = frozenset({"metadata", "as_string", "as_strings", "torch_version", "hint"})
_SPECS = frozenset({"in_spec", "out_spec", "as_operator_spec"})


def check_program(path: Path) -> None:
    """Raises ValueError unless a file is an exported program that torch can read without risk."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)

            def read(name: str) -> Any:
                if name not in members:
                    raise ValueError(f"{name} is missing")
                if members[name].file_size > _MAX_JSON_BYTES:
                    raise ValueError(f"{name} is larger than {_MAX_JSON_BYTES >> 20} MiB")
                return json.loads(archive.read(members[name]))

            if _SAMPLES in members and members[_SAMPLES].file_size:
                raise ValueError("it holds pickled sample inputs")
            for name in _CONFIGS:
                _check_config(name, read(name))
            _check_model(read(_MODEL))
    except (zipfile.BadZipFile, NotImplementedError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not a valid archive: {error}") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the members by their names below the folder, checked to be plain and as expected."""
    members: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in archive.infolist():
        folder, _, name = info.filename.partition("/")
        folders.add(folder)
        if not _MEMBERS.fullmatch(name):
            raise ValueError(f"it holds {info.filename!r}, which no exported program of assay has")
        if name in members:
            raise ValueError(f"it holds {info.filename!r} twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"{info.filename!r} is compressed or encrypted")
        members[name] = info
    if len(folders) != 1:
        raise ValueError(f"it has {len(folders)} folders instead of one")
    return members


def _check_config(name: str, config: Any) -> None:
    """Checks the table of weights or of constants: all are plain tensors."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{name} is not a table of tensors")
    for entry, facts in entries.items():
        if not isinstance(facts, dict) or facts.get("use_pickle") is not False:
            raise ValueError(f"{entry!r} in {name} is a pickled object")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(facts.get("path_name"))):
            raise ValueError(f"{entry!r} in {name} is in a file {facts.get('path_name')!r}")
        for key, text in _strings(facts):
            _check_text(key, text)


def _check_model(model: Any) -> None:
    if not isinstance(model, dict):
        raise ValueError(f"{_MODEL} is not an object")
    if model.get("guards_code"):
        raise ValueError("it holds guards, which torch would execute")
    for key, text in _strings(model):
        _check_text(key, text)


def _strings(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yields all strings in a JSON value, with the key that each is the value of, or "key"."""
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        for name, item in value.items():
            yield "key", name
            if name not in _FREE:
                yield from _strings(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key, depth + 1)
    elif isinstance(value, str):
        yield key, value


def _check_text(key: str, text: str) -> None:
    check = _CHECKS.get(key, _check_path)
    check(text)


def _check_name(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a name")


def _check_path(text: str) -> None:
    if not _PATH.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a name")


def _check_target(text: str) -> None:
    if not any(pattern.fullmatch(text) for pattern in _OPERATORS):
        raise ValueError(f"it calls {text[:80]!r}, which is not an operator")


def _check_spec(text: str) -> None:
    """Checks how inputs or outputs are nested: a JSON text, which may hold others."""
    if not text:
        return
    for key, part in _strings(json.loads(text)):
        if key == "context":
            _check_spec(part)
        else:
            _check_path(part)


def _check_expression(text: str) -> None:
    """Checks a size: calls of sympy's classes on numbers and symbols, such as "Symbol('s0')"."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text[:80]!r} is not an expression of sizes") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            good = _EXPRESSIONS.fullmatch(node.id) is not None
        elif isinstance(node, ast.Constant):
            good = not isinstance(node.value, str | bytes) or _is_symbol(node.value)
        elif isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Name)
        else:
            good = isinstance(node, _SYNTAX)
        if not good:
            raise ValueError(f"{text[:80]!r} is not an expression of sizes")


def _is_symbol(text: str | bytes) -> bool:
    return isinstance(text, str) and _SYMBOL.fullmatch(text) is not None


_SYNTAX = (
    ast.Expression,
    ast.keyword,
    ast.Load,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.Tuple,
)
_CHECKS: dict[str, Callable[[str], None]] = {
    "name": _check_name,
    "target": _check_target,
    "expr_str": _check_expression,
    **dict.fromkeys(_SPECS, _check_spec),
}
