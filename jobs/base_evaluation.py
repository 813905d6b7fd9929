"""Stage base-eval: how good the base model is, in bits per byte and, where a bundle is given, in CORE."""

import json
from dataclasses import asdict

import jax
import structlog
from jaxtyping import PyTree
from pydantic import JsonValue

from jobs.stage import Outcome, Task
from jobs.training import join_other_hosts, read_corpus, read_tokenizer, weights_of
from nanocode.data.shards import INDEX, VALIDATION, Rows
from nanocode.evals.bits import BitsPerByte, xz_bits_per_byte
from nanocode.evals.core import Evaluator, TaskResult, core_metric, read_bundle
from nanocode.text.corpus import validation_texts
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.loop import agreed
from nanocode.train.preemption import Preempted
from nanocode.train.setup import Setup, make_setup

log = structlog.get_logger()


def evaluate(task: Task) -> Outcome | None:
    """Measured by all hosts together; None for all but host 0, which publishes."""
    task.upstream("pretrain")
    join_other_hosts(task)
    corpus = read_corpus(task, INDEX, VALIDATION)
    tokenizer = read_tokenizer(task)
    setup = make_setup(task.settings)
    weights = weights_of(task, "pretrain", setup)
    measure = BitsPerByte(setup.mesh, setup.model, tokenizer)
    bits: dict[str, float] = {}
    xz: dict[str, float] = {}
    kinds = [kind for kind in ("code", "english") if corpus.exists(f"valid-{kind}.jsonl")]
    for done, kind in enumerate(kinds, 1):
        bits[kind] = measure(weights, Rows(corpus, f"valid-{kind}"))
        xz[kind] = xz_bits_per_byte(validation_texts(corpus, kind))
        task.display.show("bits per byte", done, len(kinds), "kinds", **{kind: bits[kind], "xz -9e": xz[kind]})
    core = evaluate_core(task, setup, weights, tokenizer) if task.settings.base_eval.core_bundle else None
    if jax.process_index() != 0:
        return None
    return Outcome(
        metrics={"bits_per_byte": dict(bits), "xz_bits_per_byte": dict(xz), "core": core}, chips=jax.device_count()
    )


def evaluate_core(task: Task, setup: Setup, weights: PyTree, tokenizer: Tokenizer) -> dict[str, JsonValue]:
    """CORE of the model; each task's answers are published when it is done, so a restart goes on with the next."""
    settings = task.settings.base_eval
    assert settings.core_bundle is not None
    bundle = read_bundle(settings.core_bundle)
    evaluator = Evaluator(setup.mesh, setup.model, tokenizer.encode, tokenizer.bos, settings.batch_rows)
    results: list[TaskResult] = []
    for number, one in enumerate(bundle.tasks):
        if task.preemption.reached(number):  # of several hosts; one alone leaves by itself
            raise Preempted(
                f"told to leave after {number} of {len(bundle.tasks)} tasks of CORE, whose answers are kept"
            )
        name = f"core/{one.label}.json"
        if agreed(task.output.exists(name)):
            result = TaskResult(**json.loads(task.output.read(name)))
        else:
            result = evaluator(weights, one, settings.core_examples)
            if jax.process_index() == 0:
                task.output.write(name, json.dumps(asdict(result)).encode())
        results.append(result)
        task.display.show("CORE", len(results), len(bundle.tasks), "tasks", accuracy=result.accuracy)
    per_task: dict[str, JsonValue] = {
        one.label: {
            "accuracy": one.accuracy,
            "baseline": one.baseline,
            "centered": one.centered,
            "examples": len(one.correct),
        }
        for one in results
    }
    return {"core": core_metric(results), "tasks": per_task}
