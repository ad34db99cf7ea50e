"""The notebooks of examples/: they run, and the two languages have the same code."""

import ast
import json
import os
from pathlib import Path

import pytest

from tests import programs

REPO = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = (REPO / "examples" / f"from_text_to_text{language}.ipynb" for language in ("", "_zh"))
TOY = {"TEXT": ["docs/data.md"], "VOCAB_SIZE": 300, "SEQ_LENGTH": 32, "LAYERS": 1, "HIDDEN_SIZE": 32, "HEADS": 2}


def cells(file, kind):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def shape_of(cell):
    """The code without its comments and the values of its strings."""
    tree = ast.parse("".join(cell["source"]))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def test_both_languages_have_the_same_code():
    assert list(map(shape_of, cells(ENGLISH, "code"))) == list(map(shape_of, cells(CHINESE, "code")))
    assert len(cells(ENGLISH, "markdown")) == len(cells(CHINESE, "markdown")) >= 7


@pytest.mark.parametrize("file", [ENGLISH, CHINESE], ids=lambda file: file.stem)
def test_outputs_are_left_out(file):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(file, "code"))


def test_a_notebook_runs(tmp_path, monkeypatch):
    for package in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(package)
    import nbformat
    from nbclient import NotebookClient

    for name in set(os.environ) - set(programs.user_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MINDGPT_NOTEBOOK", json.dumps(TOY | {"EPOCHS": 2}))
    monkeypatch.setenv("MINDGPT_NOTEBOOK_FOLDER", str(tmp_path))
    notebook = nbformat.read(ENGLISH, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ENGLISH.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "PerplexityMetric" in printed and "The model " in printed
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
