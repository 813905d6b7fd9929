"""Prints what pyproject.toml requires for some extras, a line each; with `--only`, what the extras alone say.

    python3 requirements.py [--only] EXTRA ...

The images install this list before the code is there, so that a change of the code installs nothing again.
"""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(project: Path, extras: Sequence[str], only: bool) -> list[str]:
    """The requirement lines; `KeyError` for an extra that is not there."""
    table = tomllib.loads(project.read_text())["project"]
    lines: list[str] = [] if only else list(table["dependencies"])
    for extra in extras:
        lines += table["optional-dependencies"][extra]
    return lines


if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:] if argument != "--only"]
    print("\n".join(requirements(Path("pyproject.toml"), names, only="--only" in sys.argv)))
