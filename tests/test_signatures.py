"""Every public function and method has type annotations; mypy checks that they are consistent."""

import ast
import pathlib

from tests.conftest import REPOSITORY

FOLDERS = ("benchmarks", "data", "evaluation", "inference", "kernels", "model", "plan", "sharding", "training")
PEERS = REPOSITORY / "benchmarks" / "peers"  # run in the peers' environments: what other libraries call has their names


def missing_annotations(source: str) -> list[str]:
    """The public functions and methods, nested ones left out, of which a parameter or the result has no type."""
    tree = ast.parse(source)
    scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
    missing = []
    for scope in scopes:
        for function in scope.body:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            given = function.args
            parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            if scope is not tree and not any(ast.unparse(each) == "staticmethod" for each in function.decorator_list):
                parameters = parameters[1:]  # self or cls
            if function.returns is None or any(each.annotation is None for each in parameters):
                missing.append(f"{function.lineno}: {function.name}")
    return missing


def test_what_is_missing_is_found():
    source = "class A:\n    def b(self, c): pass\n    def d(self) -> int: pass\ndef e(f: int): pass\ndef _g(h): pass\n"
    assert missing_annotations(source) == ["4: e", "2: b"]


def test_public_signatures_are_annotated():
    files = [REPOSITORY / "main.py", REPOSITORY / "flags.py"]
    files += [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    assert not [f"{path.relative_to(REPOSITORY)}:{each}" for path in files if PEERS not in path.parents
                for each in missing_annotations(pathlib.Path(path).read_text(encoding="utf-8"))]
