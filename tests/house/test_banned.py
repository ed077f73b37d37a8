"""What no file of ours may do: unpickle, run text as code, or run code that came with a model."""

import ast
from collections.abc import Iterator

from tests.house.tree import expect_none, sources

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
CALLS = {"eval", "exec"}
ATTRIBUTES = {"recv_pyobj", "send_pyobj", "trust_remote_code", "allow_pickle"}
TORCH = {"torch.load", "torch.save"}  # both speak pickle: safetensors does not


def found(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names if alias.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in MODULES:
                    yield node.lineno, module
                full = (f"{module}.{alias.name}" for alias in names)
                yield from ((node.lineno, name) for name in full if name in TORCH)
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield node.lineno, f"{name}()"
            case ast.Attribute(attr=name) if name in ATTRIBUTES:
                yield node.lineno, name
            case ast.Attribute(value=ast.Name(id="torch"), attr=name) if f"torch.{name}" in TORCH:
                yield node.lineno, f"torch.{name}"
            case ast.keyword(arg=str(name)) if name in ATTRIBUTES:
                yield node.lineno, name
            case ast.Constant(value=str(name)) if name in ATTRIBUTES | MODULES:
                yield node.lineno, repr(name)


def test_no_source_file_holds_a_banned_word() -> None:
    banned = [f"{source.path}:{line} {word}" for source in sources() for line, word in found(source.tree)]
    expect_none(banned, "banned; safetensors, JSON and msgpack do what these do")


def test_the_ban_sees_what_it_should() -> None:
    bad = """
import pickle
from dill import loads
from torch import load
import torch
torch.load("x")
sock.recv_pyobj()
Pipe.from_pretrained("x", trust_remote_code=True)
options = {"trust_remote_code": True}
eval("1")
"""
    assert [line for line, _ in sorted(found(ast.parse(bad)))] == [2, 3, 4, 6, 7, 8, 9, 10]
    assert (
        list(found(ast.parse("model.eval()\nasyncio.create_subprocess_exec('x')\nsafetensors.torch.load(b'')"))) == []
    )
