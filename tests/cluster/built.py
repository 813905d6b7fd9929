"""The images of our own Dockerfiles, for simulated nodes."""

import json
from pathlib import Path
from typing import Any

from tests.cluster.images import Image, Images
from tests.images.build import Image as Built
from tests.images.build import build


def add_built(images: Images, *targets: str) -> dict[str, str]:
    """Builds targets (`controller`, `cpu`), makes them known, and gives each one's reference by digest."""
    references = {}
    for target in targets:
        built = build(target)
        digest = images.add(Image(built.root, _config(built), built.digest), built.reference)
        references[target] = f"{built.reference.rpartition(':')[0]}@{digest}"
    return references


def describe_built(folder: Path, *targets: str) -> list[str]:
    """Builds targets and writes what `Images.read` reads, for a cluster that runs already; gives their references."""
    folder.mkdir(parents=True, exist_ok=True)
    references = []
    for target in targets:
        built = build(target)
        described = {
            "names": [built.reference],
            "root": str(built.root),
            "digest": built.digest,
            "config": _config(built),
        }
        aside = folder / f".{target}.next"
        aside.write_text(json.dumps(described, indent=1))
        aside.rename(folder / f"{target}.json")
        references.append(built.reference)
    return references


def _config(built: Built) -> dict[str, Any]:
    return {
        "User": built.user,
        "Env": [f"{name}={value}" for name, value in built.environment.items()],
        "Entrypoint": list(built.entrypoint),
        "Cmd": list(built.command),
        "WorkingDir": built.folder,
    }
