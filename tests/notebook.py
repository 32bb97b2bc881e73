"""Runs the cells of a notebook and stores their outputs.

    python -m tests.notebook

writes the outputs of examples/explore_audit.ipynb anew.
"""

from __future__ import annotations

import ast
import base64
import io
import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "explore_audit.ipynb"


def run_cells(notebook: dict[str, Any]) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """The names that the cells leave, and the outputs of every code cell."""
    space: dict[str, Any] = {}
    outputs = []
    for number, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), space)
        value = None
        if last is not None:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), space)
        outputs.append([] if value is None else [_output(value, number + 1)])
    return space, outputs


def _output(value: Any, number: int) -> dict[str, Any]:
    """One output as notebooks store it: picture, HTML and text, as far as the value has them."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "save") and hasattr(value, "size"):
        stream = io.BytesIO()
        value.save(stream, format="PNG")
        data = {
            "image/png": base64.b64encode(stream.getvalue()).decode(),
            "text/plain": ["<picture>"],
        }
    elif hasattr(value, "to_html"):
        data["text/html"] = value.to_html().splitlines(keepends=True)
    return {
        "data": data,
        "execution_count": number,
        "metadata": {},
        "output_type": "execute_result",
    }


def main() -> None:
    """Run the notebook and write it with its outputs."""
    notebook = json.loads(NOTEBOOK.read_text())
    _, outputs = run_cells(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, stored) in enumerate(zip(code, outputs, strict=True)):
        cell["outputs"] = stored
        cell["execution_count"] = number + 1
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
