"""The rules of the house that concern whole files: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parent.parent
MOST_LINES = 800

# From the bottom up; a room imports from itself and from lower levels only. Programs: all else.
LEVELS = (
    {"config"},
    {"io"},
    {"tokenizers", "runtime"},
    {"data"},
    {"checkpoints"},
    {"models"},
    {"pet"},
    {"train", "evaluation", "generation"},
    {"tasks", "serving", "integrations"},
    {"planning"},
    {"cli"},
    {"mindgpt"},  # the package itself, which names its public parts
    {"programs"},
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}

# torch and transformers are for converting .bin files and for comparing with; nothing else may need them.
PEERS = {"torch", "transformers"}
MAY_IMPORT_PEERS = {
    "mindgpt/checkpoints/torch_format.py",
    "mindgpt/tokenizers/token_batch.py",
    "benchmarks/benchmark.py",
    "benchmarks/benchmark_worker.py",
}

# `model.generate` is a method, and all it does is done above the models. It is loaded when it is called.
MAY_IMPORT_UPWARD = {("mindgpt/models/gpt2/gpt2.py", "mindgpt.generation.ids")}


class Import(NamedTuple):
    """One module named by an import statement, and whether the statement runs as soon as the file is imported."""

    module: str
    line: int
    at_once: bool


def programs() -> list[Path]:
    return [*REPO.glob("*.py"), *sorted((REPO / "tools").rglob("*.py")), *(REPO / "benchmarks").glob("*.py")]


def package() -> list[Path]:
    return sorted((REPO / "mindgpt").rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(REPO).as_posix()


def imports_of(tree: ast.AST, at_once: bool = True) -> list[Import]:
    """All imports below `tree`; those in functions run later, those under `if TYPE_CHECKING` never."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, at_once) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import, which this test does not follow"
            found.append(Import(node.module, node.lineno, at_once))
            if node.module in ("mindgpt", "mindgpt.models"):  # `from mindgpt import tasks`
                found += [Import(f"{node.module}.{alias.name}", node.lineno, at_once) for alias in node.names]
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            found += [entry._replace(at_once=False) for part in node.body for entry in imports_of(_list(part))]
            found += [entry for part in node.orelse for entry in imports_of(_list(part), at_once)]
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            found += imports_of(node, at_once and not later)
    return found


def _list(node: ast.stmt) -> ast.Module:
    return ast.Module(body=[node], type_ignores=[])


def room_of(file: Path) -> str:
    parts = file.relative_to(REPO).parts
    if parts[0] != "mindgpt":
        return "programs"
    return parts[1] if len(parts) > 2 else "mindgpt"


def room_imported(module: str) -> str | None:
    """The room that a module of ours is in; `mindgpt` itself, with its public names, is above all; else None."""
    parts = module.split(".")
    if parts[0] != "mindgpt":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "mindgpt"


def upward_imports(file: Path, tree: ast.AST) -> list[str]:
    room = room_of(file)
    return [
        f"{name_of(file)}:{entry.line}: {room} imports {entry.module}"
        for entry in imports_of(tree)
        if (other := room_imported(entry.module)) and other != room and LEVEL[other] >= LEVEL[room]
        if entry.at_once or (name_of(file), entry.module) not in MAY_IMPORT_UPWARD
    ]


def test_every_room_has_a_level():
    rooms = {folder.name for folder in (REPO / "mindgpt").iterdir() if (folder / "__init__.py").exists()}
    assert rooms <= set(LEVEL), "a new room needs a place in LEVELS and in the design"
    files = {file.stem for file in (REPO / "mindgpt").glob("*.py")}
    assert files == {"__init__", "__main__"}, "code lives in a room"


def test_imports_run_one_way():
    problems = [line for file in package() + programs() for line in upward_imports(file, ast.parse(file.read_text()))]
    assert problems == []


@pytest.mark.parametrize(
    ("file", "code", "allowed"),
    [
        ("mindgpt/train/x.py", "from mindgpt.checkpoints.weights import load_weights", True),
        ("mindgpt/train/x.py", "from mindgpt.tasks.train import train", False),
        ("mindgpt/train/x.py", "import mindgpt.evaluation.perplexity", False),
        ("mindgpt/runtime/x.py", "def f():\n    from mindgpt.data.records import BadRecords", False),
        ("mindgpt/config/x.py", "from mindgpt import models", False),
        ("mindgpt/models/gpt2/gpt2.py", "def f():\n    from mindgpt.generation.ids import generate_ids", True),
        ("mindgpt/models/gpt2/gpt2.py", "from mindgpt.generation.ids import generate_ids", False),
        ("mindgpt/models/gpt2/gpt2.py", "def f():\n    from mindgpt.generation.engine import Engine", False),
        ("mindgpt/models/gpt2/x.py", "if TYPE_CHECKING:\n    from mindgpt.pet.lora import wrap", False),
        ("mindgpt/tasks/x.py", "from mindgpt import GPT2Config", False),
        ("tools/x.py", "from mindgpt import GPT2Config", True),
        ("tools/x.py", "from mindgpt.tasks.train import train", True),
    ],
)
def test_this_walk_sees_what_it_must(file, code, allowed):
    assert (upward_imports(REPO / file, ast.parse(code)) == []) is allowed


def test_torch_and_transformers_are_imported_where_they_are_used_and_nowhere_else():
    for file in package() + programs():
        for entry in imports_of(ast.parse(file.read_text())):
            if entry.module.split(".")[0] in PEERS:
                assert name_of(file) in MAY_IMPORT_PEERS, f"{name_of(file)}:{entry.line} imports {entry.module}"
                assert not entry.at_once, f"{name_of(file)}:{entry.line} imports {entry.module} before it is needed"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mindgpt", {"mindspore", "numpy"}),
        ("mindgpt.config", {"mindspore"}),
        ("mindgpt.checkpoints.gpt2_config", {"mindspore"}),
        ("mindgpt.tokenizers.gpt2_tokenizer", {"mindspore"}),
        ("mindgpt.models.gpt2.convert_weight", {"mindspore"}),
        ("mindgpt.tasks.main", {"mindspore"}),
        ("mindgpt.cli.entry", {"mindspore", "numpy", "pydantic", "yaml", "tokenizers"}),
        ("mindgpt.cli.run_modes", {"mindspore"}),
        ("mindgpt.tasks.train", set()),
        ("mindgpt.serving.command", {"mindspore", "numpy", "fastapi", "uvicorn"}),
    ],
)
def test_what_loading_a_module_loads(module, absent):
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "mindgpt" in loaded
    assert loaded & (absent | PEERS) == set()


def test_one_module_knows_of_the_code_for_one_device():
    """So that `models/cpu` can be deleted; see `models/acceleration.py`. This test passes then, too."""
    names = {
        name_of(file)
        for file in package() + programs()
        for entry in imports_of(ast.parse(file.read_text()))
        if entry.module.startswith("mindgpt.models.cpu")
    }
    assert {name for name in names if not name.startswith("mindgpt/models/cpu/")} <= {"mindgpt/models/acceleration.py"}


def test_no_file_is_longer_than_can_be_read():
    files = package() + programs() + sorted((REPO / "tests").rglob("*.py"))
    lengths = {name_of(file): len(file.read_text().splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_modules_and_public_classes_have_names_of_their_own():
    modules = Counter(file.stem for file in package() if file.stem not in ("__init__", "__main__"))
    trees = [ast.parse(file.read_text()) for file in package()]
    classes = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in modules.items() if count > 1] == []
    assert [name for name, count in classes.items() if count > 1 and not name.startswith("_")] == []
