"""Executes the notebooks: `python notebooks/execute.py [NAME ...]`, all by default.

Reads the py:percent sources beside it and writes each `.ipynb` with its outputs. The
notebooks run in fast mode, unless MANIFOLD_OPTAX_FULL is set.
"""

import os
import pathlib
import sys
import time

import jupytext
import nbclient
import nbformat

HERE = pathlib.Path(__file__).resolve().parent


def read(source: pathlib.Path) -> nbformat.NotebookNode:
    """Reads a source as a notebook; the same source gives the same notebook."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.NotebookNode()
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    return notebook


def execute(source: pathlib.Path) -> None:
    """Executes one source and writes the notebook; the first error stops it."""
    notebook = read(source)
    # Progress bars belong to a person who waits, not to a file.
    os.environ |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
    nbclient.NotebookClient(
        notebook,
        timeout=3600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
    ).execute()
    notebook.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def main(names: list[str]) -> None:
    """Executes the named notebooks, or all."""
    sources = sorted(HERE.glob("[0-9]*.py"))
    if names:
        sources = [source for source in sources if source.stem in names]
    if not sources:
        raise SystemExit(f"error: no notebook is called {names}.")
    for source in sources:
        started = time.monotonic()
        execute(source)
        size = source.with_suffix(".ipynb").stat().st_size
        print(
            f"{source.stem}: {time.monotonic() - started:.0f} s, {size / 1e3:.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
