"""The scripts of benchmarks/: each imports, each call fits what it calls, and --help is answered
where options are."""

import ast
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
# Scripts for an environment of their own, with a package that this one does not have.
ELSEWHERE = {
    "torch": ("gpu_torch", "torch_decoder", "torch_generate", "torch_lora"),
    "datatrove": ("datatrove_minhash",),
}
PARSED = [name for name in NAMES if "ArgumentParser(" in (FOLDER / f"{name}.py").read_text()]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, types.ModuleType]]:
    """The modules of the scripts that import here; what their import changes is put back."""
    environment, path, before = dict(os.environ), list(sys.path), set(sys.modules)
    ours = (str(FOLDER), str(FOLDER.with_name("configs")))
    elsewhere = {name for package, names in ELSEWHERE.items() if not importable(package) for name in names}
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: opened(name) for name in NAMES if name not in elsewhere}
    finally:
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(ours):
                del sys.modules[name]


def opened(name: str) -> types.ModuleType:
    """A script as a module; by its file, as configs/ has files of the same names."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def local_names(function: ast.AST) -> set[str]:
    """The names that a function binds itself, which hide the module's."""
    nodes = list(ast.walk(function))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.arg for n in nodes if isinstance(n, ast.arg)}


def called(node: ast.expr, module: types.ModuleType, hidden: set[str]):
    """The object that an expression such as `rows.read` names; None where only a run can say it."""
    if isinstance(node, ast.Name):
        return None if node.id in hidden else getattr(module, node.id, None)
    if isinstance(node, ast.Attribute):
        owner = called(node.value, module, hidden)
        return getattr(owner, node.attr) if isinstance(owner, types.ModuleType | type) else None
    return None


def wrong_calls(module: types.ModuleType) -> Iterator[str]:
    """One line for each call of the package or of a script that does not fit the callee's
    parameters."""
    for part in ast.parse(Path(module.__file__).read_text()).body:
        hidden = local_names(part) if isinstance(part, ast.FunctionDef | ast.ClassDef) else set()
        for call in (node for node in ast.walk(part) if isinstance(node, ast.Call)):
            try:
                found = called(call.func, module, hidden)
                home = str(getattr(found, "__module__", "")).partition(".")[0]
                if callable(found) and not raises(found) and (home == "bigmodel_jax" or home in NAMES):
                    fit(found, call)
            except (TypeError, AttributeError) as error:
                yield f"{module.__name__}.py:{call.lineno}: {ast.unparse(call)[:80]}: {error}"


def raises(found) -> bool:
    """Whether it is an exception, whose parameters Python does not know."""
    return isinstance(found, type) and issubclass(found, BaseException)


def fit(function, call: ast.Call) -> None:
    """Raises TypeError where the function has no such parameters, or needs more."""
    signature = inspect.signature(function)
    open_ended = any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)
    args = [None for a in call.args if not isinstance(a, ast.Starred)]
    (signature.bind_partial if open_ended else signature.bind)(*args, **{k.arg: None for k in call.keywords if k.arg})


def test_every_script_imports_and_calls_what_there_is(scripts):
    assert len(scripts) > 30
    assert not [line for module in scripts.values() for line in wrong_calls(module)]


def test_a_call_that_lacks_a_parameter_is_found(tmp_path, monkeypatch):
    source = "from bigmodel_jax.core import files\n\n\ndef write(rows):\n    files.replace(rows)\n    files.nothing()\n"
    (tmp_path / "lacking.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = list(wrong_calls(importlib.import_module("lacking")))
    assert [line.split(": ")[0] for line in found] == ["lacking.py:5", "lacking.py:6"]


@pytest.mark.parametrize("name", PARSED)
def test_help_is_answered(name, scripts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        scripts[name].main()
    assert stop.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out
