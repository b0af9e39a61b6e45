"""The names that our code asks of TensorRT's modules, derived from its source, and their check.

The source is interpreted without being run, from the methods `build` and `open` of the engine and
every method of the session: a value that comes from the vendor has the class that the vendor's own
signatures say, through variables, attributes of self, and calls of our functions. Where the source
asks whether a name exists (`hasattr`, `getattr` with a default) or whether the engine has an
option, only the branch that this vendor would run is interpreted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engines
from engines.backends import _tensorrt
from engines.contract import BuildOptions

FOLDER = Path(_tensorrt.__file__).parent
FILES = sorted(path.name for path in FOLDER.glob("_tensorrt*.py"))
ENTRIES = (("TensorRTEngine", "build"), ("TensorRTEngine", "open"))
SESSION = "TensorRTSession"
# Names that are put together when the code runs.
COMPUTED = {"ComputeCapability": _tensorrt.TARGETS}
_OPTIONS = frozenset(BuildOptions.__dataclass_fields__)


@dataclass(frozen=True)
class Module:
    """The vendor's module."""


@dataclass(frozen=True)
class Class:
    """A class of the vendor."""

    name: str


@dataclass(frozen=True)
class Instance:
    """An object of a class of the vendor; `own` are the names that a subclass of ours adds."""

    name: str
    own: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Method:
    """A function or method of the vendor."""

    owner: str
    name: str
    signatures: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """A function or method of ours."""

    node: ast.FunctionDef
    bound: bool = False


@dataclass(frozen=True)
class OwnClass:
    """A class of ours that extends one of the vendor."""

    instance: Instance


@dataclass(frozen=True)
class ListOf:
    """A sequence of equal values."""

    element: Any


@dataclass(frozen=True)
class Absent:
    """What `getattr` returns for a name that this vendor lacks: its default."""


@dataclass(frozen=True)
class Known:
    """A value that is known without running the code."""

    value: bool


@dataclass(frozen=True)
class Use:
    """One place in the source that asks for a name.

    Attributes:
        place: File and line.
        name: The name, with the class or "module" it is asked of, as in "Builder.create_network".
        exists: Whether the vendor has it.
        optional: Whether the source asks if it exists.
        problem: Why the call does not fit the vendor's signatures, or "".
    """

    place: str
    name: str
    exists: bool
    optional: bool = False
    problem: str = ""


class _Returned(Exception):  # noqa: N818 - no error: the rest of a function is not run
    """The end of a function."""


@dataclass
class Interpreter:
    """Interprets our source with one vendor's module; see the module's docstring.

    Attributes:
        contents: What the module contains, as `vendor_wheels.contents` returns it.
        engine: The engine that uses the module.
        folder: The folder of the source.
        uses: Every use of a name.
        untracked: Places with a name that only the vendor has, on a value of unknown class.
    """

    contents: dict[str, Any]
    engine: Any
    folder: Path = FOLDER
    uses: set[Use] = field(default_factory=set)
    untracked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._classes: dict[str, dict[str, list[str]]] = self.contents["classes"]
        self._distinctive = {
            name
            for members in self._classes.values()
            for name in members
            if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+|[A-Z][A-Z_0-9]+", name)
        }
        self._functions: dict[str, ast.FunctionDef] = {}
        self._methods: dict[str, dict[str, ast.FunctionDef]] = {}
        self._file: dict[int, str] = {}
        self._self: dict[str, Any] = {}
        self._running: list[Function] = []
        self._class = ""
        for file in FILES:
            tree = ast.parse((self.folder / file).read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                self._file[id(node)] = file
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self._functions[node.name] = node
                elif isinstance(node, ast.ClassDef):
                    self._methods[node.name] = {
                        part.name: part for part in node.body if isinstance(part, ast.FunctionDef)
                    }

    def run(self) -> None:
        """Interprets everything; the results are in `uses` and `untracked`."""
        for owner, name in ENTRIES:
            if name == "build" and "Builder" not in self._classes:
                continue  # the lean runtime, of which `build` is never asked
            self._class = owner
            self._call(Function(self._methods[owner][name], bound=True), [], {})
        self._class = SESSION
        for _ in range(2):  # attributes of self may be set in a later method
            for method in self._methods[SESSION].values():
                if method.name != "__init__":
                    self._call(Function(method, bound=True), [], {})

    # Values

    def _member(self, value: Any, name: str, node: ast.AST, *, optional: bool = False) -> Any:
        """Returns an attribute of a value, and notes the use if it is the vendor's."""
        if isinstance(value, Instance) and name in value.own:
            return None
        if not isinstance(value, Module | Class | Instance):
            if value is None and name in self._distinctive:
                self.untracked.add(f"{self._place(node)}: {name}")
            return None
        of_module = isinstance(value, Module)
        owner = "module" if of_module else value.name
        if name == "__name__":
            return None
        members = self.contents["module"] if of_module else self._classes[owner]
        self.uses.add(Use(self._place(node), f"{owner}.{name}", name in members, optional=optional))
        if name not in members:
            return Absent()
        inner = name if of_module else f"{owner}.{name}"
        if inner in self._classes:
            return Class(inner)
        signatures = tuple(members[name])
        if signatures and signatures[0].startswith("(arg0: ") and isinstance(value, Instance):
            return self._instance(signatures[0])
        return Method(owner, name, signatures)

    def _instance(self, signature: str) -> Instance | None:
        """Returns the value of the class that a signature returns, if it is the vendor's."""
        name = re.split(r"\W+", signature)[-1]
        names = {kind.split(".")[-1]: kind for kind in self._classes}
        # Bindings without a Python name are documented by the name of the C++ interface.
        for known in (name, name.removeprefix("I")):
            if known in names:
                return Instance(names[known])
        return None

    def _place(self, node: ast.AST) -> str:
        return f"{self._file.get(id(node), '?')}:{getattr(node, 'lineno', 0)}"

    # Expressions

    def _value(self, node: ast.AST | None, names: dict[str, Any]) -> Any:
        match node:
            case ast.Name():
                return names.get(node.id, self._global(node.id))
            case ast.Attribute():
                return self._attribute(node, names)
            case ast.Call():
                return self._called(node, names)
            case ast.BoolOp():
                return self._bool(node, names)
            case ast.UnaryOp(op=ast.Not()):
                operand = self._value(node.operand, names)
                truth = self._truth(operand)
                return None if truth is None else Known(not truth)
            case ast.IfExp():
                truth = self._truth(self._value(node.test, names))
                if truth is not None:
                    return self._value(node.body if truth else node.orelse, names)
                values = [self._value(node.body, names), self._value(node.orelse, names)]
                return values[0] or values[1]
            case ast.ListComp() | ast.GeneratorExp():
                inner = dict(names)
                for generator in node.generators:
                    self._bind(generator.target, self._element(generator.iter, inner), inner)
                    for condition in generator.ifs:
                        self._value(condition, inner)
                return ListOf(self._value(node.elt, inner))
            case None:
                return None
        for child in ast.iter_child_nodes(node):
            self._value(child, names)
        return None

    def _global(self, name: str) -> Any:
        return Function(self._functions[name]) if name in self._functions else None

    def _attribute(self, node: ast.Attribute, names: dict[str, Any]) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id == "self" and "self" not in names:
            method = self._methods[self._class].get(node.attr)
            if method is not None:
                return Function(method, bound=True)
            if node.attr == "builds_without_gpu":
                return Known(self.engine.builds_without_gpu)
            return self._self.get(node.attr)
        if (
            isinstance(node.value, ast.Name)
            and node.value.id == "options"
            and node.attr in _OPTIONS
            and node.attr not in self.engine.build_options
        ):
            return Known(False)
        return self._member(self._value(node.value, names), node.attr, node)

    def _bool(self, node: ast.BoolOp, names: dict[str, Any]) -> Any:
        ends = isinstance(node.op, ast.Or)
        values = []
        for part in node.values:
            values.append(self._value(part, names))
            if self._truth(values[-1]) is ends:
                return Known(ends)
        truths = [self._truth(value) for value in values]
        return Known(not ends) if None not in truths else None

    def _truth(self, value: Any) -> bool | None:
        """Returns whether a value is true, or None if that is not known."""
        if isinstance(value, Known):
            return value.value
        if isinstance(value, Absent):
            return False
        return True if isinstance(value, Class) else None

    def _called(self, node: ast.Call, names: dict[str, Any]) -> Any:
        builtin = node.func.id if isinstance(node.func, ast.Name) else ""
        if builtin in ("getattr", "hasattr"):
            return self._asked(node, names)
        function = self._value(node.func, names)
        values = [self._value(argument, names) for argument in node.args]
        keywords = {word.arg: self._value(word.value, names) for word in node.keywords}
        if (
            builtin == "import_vendor"
            and node.args
            and ast.unparse(node.args[0]).startswith("self.")
        ):
            return Module()
        if builtin == "map" and isinstance(values[0], Function):
            return ListOf(self._call(values[0], [self._element_of(values[1])], {}))
        if builtin == SESSION:
            self._class, before = SESSION, self._class
            self._call(Function(self._methods[SESSION]["__init__"], bound=True), values, keywords)
            self._class = before
            return None
        if isinstance(function, Class):
            constructor = self._classes[function.name].get("__init__", [])
            self._check_call(node, Method(function.name, "__init__", tuple(constructor)))
            return Instance(function.name)
        if isinstance(function, OwnClass):
            return function.instance
        if isinstance(function, Method):
            self._check_call(node, function)
            return self._instance(function.signatures[0]) if function.signatures else None
        if isinstance(function, Function):
            return self._call(function, values, keywords)
        return None

    def _asked(self, node: ast.Call, names: dict[str, Any]) -> Any:
        """Interprets `hasattr(value, name)` and `getattr(value, name[, default])`."""
        value, asks = self._value(node.args[0], names), ast.unparse(node.func) == "hasattr"
        if not isinstance(value, Module | Class | Instance):
            return None
        if not isinstance(node.args[1], ast.Constant):
            computed = COMPUTED.get(getattr(value, "name", ""))
            if computed is None:
                name = f"{getattr(value, 'name', 'module')}.{ast.unparse(node.args[1])}"
                problem = "the name is computed, and missing in COMPUTED"
                self.uses.add(Use(self._place(node), name, False, problem=problem))
            for name in computed or ():
                self._member(value, name, node)
            return None
        optional = asks or len(node.args) > 2
        member = self._member(value, str(node.args[1].value), node, optional=optional)
        return Known(not isinstance(member, Absent)) if asks else member

    def _check_call(self, node: ast.Call, method: Method) -> None:
        """Notes a call whose arguments no signature takes."""
        if not method.signatures or any(isinstance(value, ast.Starred) for value in node.args):
            return
        count, words = len(node.args), {word.arg for word in node.keywords}
        if not any(_fits(signature, count, words) for signature in method.signatures):
            name = f"{method.owner}.{method.name}"
            problem = f"{ast.unparse(node)} does not fit {' or '.join(method.signatures)}"
            self.uses.add(Use(self._place(node), name, True, problem=problem))

    def _element(self, node: ast.AST, names: dict[str, Any]) -> Any:
        return self._element_of(self._value(node, names))

    def _element_of(self, value: Any) -> Any:
        return value.element if isinstance(value, ListOf) else None

    # Statements

    def _call(self, function: Function, values: list[Any], keywords: dict[str, Any]) -> Any:
        """Interprets a function of ours; returns the first value it returns."""
        arguments = function.node.args
        parameters = [each.arg for each in (*arguments.args, *arguments.kwonlyargs)]
        parameters = parameters[1:] if function.bound else parameters
        names = {**dict.fromkeys(parameters), **dict(zip(parameters, values, strict=False))}
        names.update({name: value for name, value in keywords.items() if name})
        if function in self._running:
            return None
        self._running.append(function)
        returned: list[Any] = []
        self._branch(function.node.body, names, returned)
        self._running.pop()
        return next((value for value in returned if value is not None), None)

    def _block(self, body: Iterable[ast.stmt], names: dict[str, Any], out: list[Any]) -> None:
        for statement in body:
            self._statement(statement, names, out)

    def _statement(self, node: ast.stmt, names: dict[str, Any], out: list[Any]) -> None:
        match node:
            case ast.Return():
                out.append(self._value(node.value, names))
                raise _Returned
            case ast.Raise():
                self._value(node.exc, names)
                raise _Returned
            case ast.Assign():
                value = self._value(node.value, names)
                for target in node.targets:
                    self._assign(target, node.value, value, names)
            case ast.AnnAssign():
                self._assign(node.target, node.value, self._value(node.value, names), names)
            case ast.If():
                self._if(node, names, out)
            case ast.ClassDef():
                names[node.name] = self._own_class(node, names)
            case ast.FunctionDef():
                names[node.name] = Function(node)
            case _:
                self._compound(node, names, out)

    def _compound(self, node: ast.stmt, names: dict[str, Any], out: list[Any]) -> None:
        match node:
            case ast.For():
                self._bind(node.target, self._element(node.iter, names), names)
                self._branch(node.body, names, out)
            case ast.Try():
                self._branch([*node.body, *node.orelse], names, out)
                for handler in node.handlers:
                    self._branch(handler.body, names, out)
                self._branch(node.finalbody, names, out)
            case ast.With() | ast.While():
                for item in getattr(node, "items", ()):
                    self._value(item.context_expr, names)
                self._branch(node.body, names, out)
            case _:
                for child in ast.iter_child_nodes(node):
                    self._value(child, names)

    def _if(self, node: ast.If, names: dict[str, Any], out: list[Any]) -> None:
        truth = self._truth(self._value(node.test, names))
        if truth is not None:
            self._block(node.body if truth else node.orelse, names, out)
            return
        self._branch(node.body, names, out)
        self._branch(node.orelse, names, out)

    def _branch(self, body: Iterable[ast.stmt], names: dict[str, Any], out: list[Any]) -> None:
        """Interprets statements that may not be run, so that a return in them ends nothing."""
        with suppress(_Returned):
            self._block(body, names, out)

    def _assign(
        self, target: ast.AST, source: ast.AST | None, value: Any, names: dict[str, Any]
    ) -> None:
        if isinstance(target, ast.Tuple) and isinstance(source, ast.Tuple):
            for part, each in zip(target.elts, source.elts, strict=True):
                self._bind(part, self._value(each, names), names)
            return
        self._bind(target, value, names)

    def _bind(self, target: ast.AST, value: Any, names: dict[str, Any]) -> None:
        match target:
            case ast.Name():
                names[target.id] = value
            case ast.Attribute(value=ast.Name(id="self")) if "self" not in names:
                if value is not None:
                    self._self[target.attr] = value
            case ast.Attribute():
                self._member(self._value(target.value, names), target.attr, target)
            case ast.Tuple():
                for part in target.elts:
                    self._bind(part, None, names)

    def _own_class(self, node: ast.ClassDef, names: dict[str, Any]) -> Any:
        """Interprets a class of ours that extends one of the vendor."""
        base = self._value(node.bases[0], names) if node.bases else None
        if not isinstance(base, Class):
            return None
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        own = {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute)
            and isinstance(part.ctx, ast.Store)
            and isinstance(part.value, ast.Name)
            and part.value.id == "self"
        }
        instance = Instance(base.name, frozenset(own))
        for method in methods:
            if not method.name.startswith("_"):  # the vendor calls it by this name
                self._member(Class(base.name), method.name, method)
            inner = {**names, **{each.arg: None for each in method.args.args}}
            inner["self"] = Instance(base.name, frozenset(own))
            self._branch(method.body, inner, [])
        return OwnClass(instance)


def _fits(signature: str, count: int, words: set[str | None]) -> bool:
    """Whether a signature takes so many positional arguments and these keywords."""
    text = re.sub(r"<[^<>]*>", "None", signature).replace("::", ".")
    arguments = ast.parse(f"def f{text}: ...").body[0].args  # type: ignore[attr-defined]
    parameters = [each.arg for each in arguments.args if each.arg != "self"]
    required = len(parameters) - len(arguments.defaults)
    missing = set(parameters[count:required]) - words
    return count <= len(parameters) and words <= set(parameters[count:]) and not missing


def interpreted(contents: dict[str, Any], engine: str, folder: Path = FOLDER) -> Interpreter:
    """Returns an interpreter that has interpreted the source with a vendor's module."""
    interpreter = Interpreter(contents, engines.get(engine), folder)
    interpreter.run()
    return interpreter


def problems(interpreter: Interpreter) -> Iterator[str]:
    """Yields a line for every name that the vendor lacks or calls otherwise."""
    for use in sorted(interpreter.uses, key=lambda each: (each.place, each.name)):
        if use.problem:
            yield f"{use.place}: {use.problem}"
        elif not use.exists and not use.optional:
            yield f"{use.place}: {use.name} does not exist"
