"""Files of exported programs: those that would run code are refused before torch reads them."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.backends.pytorch import ENGINE, load_program
from engines.contract import OpenOptions, TensorSpec
from engines.errors import DeployError
from exporters.program import export_program, save_program
from pipeline.workflow.runner import Store
from tests.subset import python_path

FOLDER = "archive/"
MODEL = "models/model.json"


class Sized(torch.nn.Module):
    """Sizes are computed from the batch, so that the file holds expressions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = self.conv(image)
        halves = y.reshape(image.shape[0] * 2, -1) + self.table[1]
        return halves.reshape(image.shape[0], -1) / max(image.shape[0] // 2, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    program = export_program(Sized().eval(), [torch.rand(2, 1, 6, 6)])
    spec = TensorSpec("image", "float32", (None, 1, 6, 6))
    save_program(program, path, (spec,), (TensorSpec("logits", "float32", (None, 32)),))
    assert program.example_inputs is not None  # the caller's program is as it was
    return path


def rewritten(
    source: Path, target: Path, change: Callable[[dict[str, bytes]], None], **how: Any
) -> Path:
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", **how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def in_model(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        model = json.loads(members[FOLDER + MODEL])
        change(model)
        members[FOLDER + MODEL] = json.dumps(model).encode()

    return edit


def nodes(model: dict[str, Any]) -> list[dict[str, Any]]:
    return model["graph_module"]["graph"]["nodes"]


def expressions(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        own = [value] if "expr_str" in value else []
        return own + [found for item in value.values() for found in expressions(item)]
    if isinstance(value, list):
        return [found for item in value for found in expressions(item)]
    return []


def set_expression(text: str) -> Callable[[dict[str, bytes]], None]:
    return in_model(lambda model: expressions(model)[0].update(expr_str=text))


def set_target(text: str) -> Callable[[dict[str, bytes]], None]:
    return in_model(lambda model: nodes(model)[0].update(target=text))


def pickled_weight(members: dict[str, bytes]) -> None:
    name = f"{FOLDER}data/weights/model_weights_config.json"
    config = json.loads(members[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    members[name] = json.dumps(config).encode()


def object_constant(members: dict[str, bytes]) -> None:
    name = f"{FOLDER}data/constants/model_constants_config.json"
    config = json.loads(members[name])
    next(iter(config["config"].values()))["path_name"] = "opaque_obj_0"
    members[name] = json.dumps(config).encode()


def rename_input(name: str) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        old = b'"image"'
        assert old in members[FOLDER + MODEL]
        members[FOLDER + MODEL] = members[FOLDER + MODEL].replace(old, json.dumps(name).encode())

    return edit


OPEN = "__import__('os').system('touch CANARY')"
ATTACKS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "a pickled weight": pickled_weight,
    "an opaque object": object_constant,
    "legacy weights": lambda members: members.update({f"{FOLDER}data/weights/model.pt": b"x"}),
    "legacy constants": lambda members: members.update({f"{FOLDER}data/constants/model.pt": b"x"}),
    "another model": lambda members: members.update({f"{FOLDER}models/other.json": b"{}"}),
    "native code": lambda members: members.update({f"{FOLDER}data/aotinductor/m/m.so": b"x"}),
    "a member beside the folder": lambda members: members.update({"models/model.json": b"{}"}),
    "a size that imports": set_expression(OPEN),
    "a size that calls an attribute": set_expression("Symbol('s0').__class__.__mro__"),
    "a size that is a lambda": set_expression("(lambda: 1)()"),
    "a size of another function": set_expression("lambdify(Symbol('s0'), Integer(1))"),
    "a size that is code in a text": set_expression("Symbol('s0; import os')"),
    "a size that is a comprehension": set_expression("[1 for s0 in Symbol('s0')]"),
    "a size that subscripts": set_expression("Symbol('s0')[0]"),
    "a size by format": set_expression("f'{s0}'"),
    "os.system": set_target("torch.os.system"),
    "a shared library": set_target("torch.ops.load_library"),
    "torch.load": set_target("torch.load"),
    "a file": set_target("torch.ops.aten.from_file.default"),
    "a hub": set_target("torch.hub.load"),
    "a private attribute": set_target("torch.ops.aten.__class__.mro"),
    "an attribute of an overload": set_target("torch.ops.aten.add.Tensor.__init__"),
    "operator.attrgetter": set_target("_operator.attrgetter"),
    "operator.call": set_target("_operator.call"),
    "an extension": set_target("#extension:attack"),
    "a name that is code": rename_input(f"x={OPEN}"),
    "a name with a new line": rename_input("x\nimport os"),
    "guards": in_model(lambda model: model.update(guards_code=[OPEN])),
    "deep nesting": lambda members: members.update(
        {FOLDER + MODEL: b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"}
    ),
    "no object": lambda members: members.update({FOLDER + MODEL: b"3"}),
    "no JSON": lambda members: members.update({FOLDER + MODEL: b"{"}),
    "text that is not UTF-8": lambda members: members.update({FOLDER + MODEL: b'"\xff"'}),
}


@pytest.mark.parametrize("change", ATTACKS.values(), ids=ATTACKS)
def test_what_might_run_code_is_refused(
    change: Callable[[dict[str, bytes]], None],
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "load", None)  # it must not be reached
    attack = rewritten(saved, tmp_path / "attack.pt2", change)
    with pytest.raises(DeployError, match=r"attack.pt2 is not opened") as caught:
        load_program(torch, attack)
    assert caught.value.hint
    assert not (tmp_path / "CANARY").exists()


def with_samples(members: dict[str, bytes], content: bytes) -> None:
    members[f"{FOLDER}data/sample_inputs/model.pt"] = content


@pytest.mark.parametrize("kind", ["raw", "zip", "legacy"])
def test_pickled_sample_inputs_are_refused(kind: str, saved: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    buffer = io.BytesIO()
    if kind == "raw":
        pickle.dump(Canary(canary), buffer)
    else:
        torch.save((Canary(canary),), buffer, _use_new_zipfile_serialization=kind == "zip")
    attack = rewritten(
        saved, tmp_path / "a.pt2", lambda members: with_samples(members, buffer.getvalue())
    )
    with pytest.raises(DeployError, match="pickled sample inputs"):
        ENGINE.open(attack, OpenOptions())
    assert not canary.exists()
    with pytest.raises(DeployError, match="pickled sample inputs"):
        ENGINE.build(attack, tmp_path / "engine", None)


def test_a_member_that_is_there_twice_is_refused(saved: Path, tmp_path: Path) -> None:
    attack = tmp_path / "attack.pt2"
    attack.write_bytes(saved.read_bytes())
    with zipfile.ZipFile(attack, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(FOLDER + MODEL, b"{}")
    with pytest.raises(DeployError, match=r"'archive/models/model.json' twice"):
        load_program(torch, attack)


def test_compressed_members_are_refused(saved: Path, tmp_path: Path) -> None:
    attack = rewritten(saved, tmp_path / "a.pt2", lambda _: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DeployError, match="compressed"):
        load_program(torch, attack)


def test_a_saved_program_is_accepted_and_computes_the_same(saved: Path) -> None:
    program, signature = load_program(torch, saved)
    assert [spec["name"] for spec in signature["inputs"]] == ["image"]
    assert [tuple(tensor.shape) for tensor in program.example_inputs[0]] == [(2, 1, 6, 6)]
    image = np.random.default_rng(0).random((5, 1, 6, 6), dtype=np.float32)
    with torch.no_grad():
        expected = program.module(check_guards=False)(torch.from_numpy(image)).numpy()
    session = ENGINE.open(saved, OpenOptions())
    np.testing.assert_array_equal(session.run({"image": image})["logits"], expected)
    session.close()


def test_unusual_names_of_modules_and_options_in_words_are_accepted(tmp_path: Path) -> None:
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleDict({"first-part": torch.nn.Conv2d(1, 2, 3)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.nn.functional.interpolate(self.parts["first-part"](x), (9, 9), mode="bicubic")
            return torch.nn.functional.gelu(y, approximate="tanh")

    spec = TensorSpec("x", "float32", (None, 1, 6, 6))
    program = export_program(Named().eval(), [torch.rand(2, 1, 6, 6)])
    save_program(program, tmp_path / "named.pt2", (spec,), (spec,))
    load_program(torch, tmp_path / "named.pt2")


def test_the_chains_program_is_accepted(built: Store) -> None:
    load_program(torch, built.root / "lenet/fp32/model.pt2")


_SAVE = """
import sys
from pathlib import Path
import exporters.program as programs
program = programs.read_program(Path(sys.argv[1]))
try:
    programs.save_program(program, Path("/dev/full"), (), ())
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.slow(4)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_and_does_not_end_the_process(saved: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _SAVE, saved],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "No space left on device\n"
