"""Stage corpus: documents from the sources, filtered, tokenized and packed into shards of rows."""

import sys
import time

from pydantic import JsonValue

from jobs.stage import Outcome, Task, run_stage
from nanocode.text import corpus, mixture


def work(task: Task) -> Outcome | None:
    settings, began = task.settings, time.monotonic()
    tokenizer = task.run.store.read(task.upstream("tokenizer").outputs["tokenizer"])
    with task.leases() as leases:
        index = corpus.build(
            task.output,
            tokenizer,
            mixture.open_sources(settings.corpus.sources),
            tokens=settings.corpus.tokens,
            context=settings.model.context,
            seed=settings.seed,
            validation_share=settings.corpus.validation_share,
            workers=settings.corpus.workers,
            leases=leases,
            show=task.display.show,
        )
    if index is None:
        return None
    kinds: dict[str, JsonValue] = {
        kind: {"documents": s.documents, "bytes": s.bytes, "rows": s.rows} for kind, s in index.valid.items()
    }
    return Outcome(
        outputs={"corpus": task.folder},
        metrics={
            "tokens": index.tokens,
            "documents": sum(shard.documents for shard in index.train),
            "bytes": sum(shard.bytes for shard in index.train),
            "rows": index.rows,
            "waste": index.waste,
            "seconds": time.monotonic() - began,
            "valid": kinds,
            "held_out": list(index.held_out),
            "sources": [source.model_dump(mode="json") for source in index.sources],
        },
    )


if __name__ == "__main__":
    sys.exit(run_stage("corpus", work))
