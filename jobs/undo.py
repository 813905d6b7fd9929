"""Taking back what Edit did to files. What a shell command did stays: nobody but the command knows what that was."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanocode.agent.workspace import FILE_BYTES, Workspace


@dataclass(frozen=True)
class Change:
    """What an Edit did to a file; a text of None: there was none."""

    path: str
    before: str | None
    after: str | None
    mode: int = 0o644


def text_of(workspace: Workspace, path: str) -> str | None:
    """The text of a file as it stands, line ends and all; None where there is no such file."""
    place = _inside(workspace, path)
    if place is None or place.stat().st_size > FILE_BYTES:
        return None
    try:
        return place.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def mode_of(workspace: Workspace, path: str) -> int:
    """Its permissions; those of a new file where there is none."""
    place = _inside(workspace, path)
    return 0o644 if place is None else place.stat().st_mode & 0o777


def undo(workspace: Workspace, changes: Sequence[Change]) -> list[str]:
    """Put the files back; one line for each that was, or was not because somebody has changed it since."""
    said: dict[str, str] = {}
    for change in reversed(changes):
        if text_of(workspace, change.path) != change.after:
            said[change.path] = f"{change.path} has changed since: left as it is"
        elif change.before is None:
            place = _inside(workspace, change.path)
            assert place is not None
            place.unlink()
            said[change.path] = f"{change.path} is gone again"
        else:
            workspace.put(change.path, change.before)
            (workspace.root / change.path).chmod(change.mode)
            said[change.path] = f"{change.path} is as it was"
    return list(said.values())


def _inside(workspace: Workspace, path: str) -> Path | None:
    """The file, if it is a regular one that is reached through folders of the workspace only."""
    place = workspace.root / path
    try:
        straight = ".." not in place.parts and place.resolve() == place and workspace.root in place.parents
        return place if straight and place.is_file() else None
    except (OSError, ValueError):
        return None
