"""Small sources on real text, and builds of them."""

import sysconfig
from pathlib import Path

from nanocode.config.settings import Source
from nanocode.data.shards import Index
from nanocode.run.leases import Leases
from nanocode.storage.objects import LocalStore
from nanocode.text import corpus, mixture
from nanocode.text.tokenizer import Tokenizer, train

STDLIB = Path(sysconfig.get_paths()["stdlib"])
NAMES = ["argparse", "ast", "bisect", "calendar", "cmd", "code", "copy", "csv", "glob", "heapq", "inspect", "tarfile"]
TEXTS = {name: (STDLIB / f"{name}.py").read_text() for name in NAMES}
TOKENIZER: Tokenizer = train(TEXTS.values(), 400, 2, False)
CONTEXT, SHARE = 64, 0.3


def write_tree(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / f"{name}.py").write_text(text)
        for part in range(8):
            (folder / f"{name}-{part}.md").write_text(text[part * 900 : part * 900 + 900])
    return folder


def build(
    store: Path, *locations: str | Path, tokens: int = 60_000, worker: int = 0, of: int = 1, workers: int = 1
) -> Index | None:
    sources = mixture.open_sources([Source(location=str(one)) for one in locations])
    with Leases(LocalStore(store) if of > 1 else None, worker, of) as leases:
        return corpus.build(
            LocalStore(store), TOKENIZER.to_bytes(), sources, tokens=tokens, context=CONTEXT, seed=0,
            validation_share=SHARE, workers=workers, leases=leases,
        )  # fmt: skip


def content(store: Path) -> dict[str, bytes]:
    """What a reader of the corpus reads."""
    wanted = [*store.glob("train-*"), *store.glob("valid*"), store / "index.json"]
    return {path.name: path.read_bytes() for path in wanted}
