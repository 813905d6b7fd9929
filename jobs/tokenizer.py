"""Stage tokenizer: learn a byte-level BPE from the corpus sources, and compare it with public ones."""

import sys
import time
from collections.abc import Iterator

from jobs.stage import Outcome, Task, run_stage
from nanocode.agent.conversation import Step
from nanocode.agent.soul import read_soul
from nanocode.run.exits import ConfigurationError
from nanocode.synth.rollouts import attempt
from nanocode.tasks.families import training
from nanocode.text import mixture, public
from nanocode.text.tokenizer import bytes_per_token, train

COMPARED_MEGABYTES = 0.5


def work(task: Task) -> Outcome:
    settings, began = task.settings, time.monotonic()
    total = settings.tokenizer.megabytes
    share = settings.corpus.validation_share
    read = 0.0
    weighted = mixture.open_sources(settings.corpus.sources)

    def texts() -> Iterator[str]:
        nonlocal read
        for text in mixture.training_texts(weighted, total, share):
            read += len(text) / 1e6
            task.display.show("reading", min(read, total), total, "MB")
            yield text
        yield from rollout_texts(settings.tokenizer.rollouts)

    try:
        tokenizer = train(
            texts(), settings.model.vocab_size, settings.tokenizer.digits, settings.tokenizer.split_underscore
        )
    except ValueError as error:
        raise ConfigurationError(f"model.{error}") from error
    task.output.write("tokenizer.json", tokenizer.to_bytes())
    compared = {
        kind: list(mixture.held_out_texts(weighted, kind, COMPARED_MEGABYTES, share)) for kind in ("code", "english")
    }
    compared = {kind: those for kind, those in compared.items() if those}
    return Outcome(
        outputs={"tokenizer": f"{task.folder}/tokenizer.json"},
        metrics={
            "vocab_size": tokenizer.vocab_size,
            "seconds": time.monotonic() - began,
            "bytes_per_token": {kind: bytes_per_token(tokenizer.encode, those) for kind, those in compared.items()},
            "public": {
                name: {kind: bytes_per_token(encode, those) for kind, those in compared.items()}
                for name, encode in public.installed().items()
            },
        },
    )


def rollout_texts(count: int) -> Iterator[str]:
    """What is said and done in rollouts of the built-in expert, whatever the SOUL: a new one needs no new tokenizer."""
    soul = read_soul(None)
    for one in training("tokenizer", count):
        for message in attempt(one, soul).messages:
            yield message.text
            if isinstance(message, Step) and message.call is not None:
                yield from message.call.arguments.values()


if __name__ == "__main__":
    sys.exit(run_stage("tokenizer", work))
