"""Stage agent-eval: what base, fine-tuned and preference model make of tasks they have never seen, really executed."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from pydantic import JsonValue

from jobs.stage import Outcome, Task
from jobs.training import read_tokenizer, weights_of
from nanocode.agent.episode import Policy
from nanocode.agent.policies import EnginePolicy, make_engine
from nanocode.agent.soul import Soul, read_soul
from nanocode.evals import agent
from nanocode.evals.agent import TaskResult
from nanocode.evals.humaneval import read_problems, solved
from nanocode.generate.engine import Engine, Request, Sampling
from nanocode.storage.objects import NotFound
from nanocode.tasks import task as tasks
from nanocode.text.tokenizer import Tokenizer
from nanocode.train.setup import Setup, make_setup

SUITES_OF: dict[str, tuple[str, ...]] = {
    "pretrain": ("fresh",),
    "sft": ("fresh",),
    "preference": tuple(agent.SUITES),
}
"""The last model takes every suite; the others the one by which stages are compared."""
TASKS_AT_ONCE = 64
"""Tasks whose results are published at a time: with as many slots every conversation keeps its cache."""
SAMPLING_TEMPERATURE = 0.8
HUMANEVAL_TOKENS = 256
TRANSCRIPTS = 2
"""Successes, and failures, per family that go into the report."""


def evaluate(task: Task) -> Outcome:
    settings, tokenizer = task.settings, read_tokenizer(task)
    soul = read_soul(settings.soul, settings.soul_text)
    setup = make_setup(settings)
    engine: Engine | None = None
    plan = [(stage, suite) for stage, suites in SUITES_OF.items() for suite in suites]
    metrics: dict[str, JsonValue] = {}
    models: dict[str, Any] = {name: {} for name in SUITES_OF}
    for done, (stage, suite) in enumerate(plan):
        task.display.show("evaluating", done, len(plan), "suites")
        if not models[stage]:
            weights = weights_of(task, stage, setup)
            engine = (
                engine.with_weights(weights)
                if engine is not None
                else make_engine(setup.model, weights, tokenizer, settings.agent_eval.slots)
            )
        assert engine is not None
        policy = EnginePolicy(engine, tokenizer)
        every = agent.suite(suite, settings.agent_eval.instances, settings.seed)
        results = played(task, f"{stage}/{suite}", policy, every, soul)
        models[stage][suite] = summary(results)
        if settings.agent_eval.samples and suite == "fresh":
            sampling = Sampling(SAMPLING_TEMPERATURE)
            attempts = [
                played(task, f"{stage}/{suite}/sample-{n}", EnginePolicy(engine, tokenizer, sampling, n), every, soul)
                for n in range(settings.agent_eval.samples)
            ]
            models[stage][suite]["pass@k"] = pass_at(attempts)
    task.display.show("evaluating", len(plan), len(plan), "suites")
    fresh = agent.suite("fresh", settings.agent_eval.instances, settings.seed)
    for name, baseline in agent.BASELINES.items():
        models[name] = {"fresh": summary(played(task, f"baseline/{name}", baseline, fresh, soul))}
    metrics["models"] = models
    if settings.agent_eval.humaneval:
        metrics["humaneval"] = humaneval(task, setup, tokenizer)
    return Outcome(metrics=metrics, chips=jax.device_count())


def humaneval(task: Task, setup: Setup, tokenizer: Tokenizer) -> dict[str, JsonValue]:
    """How many of HumanEval's functions each model completes, greedily, from the plain text of the prompt."""
    problems = read_problems()
    found: dict[str, JsonValue] = {}
    engine: Engine | None = None
    for stage in SUITES_OF:
        name = f"{stage}/humaneval.json"
        try:
            passed: list[bool] = json.loads(task.output.read(name))
        except NotFound:
            weights = weights_of(task, stage, setup)
            slots = task.settings.agent_eval.slots
            engine = (
                engine.with_weights(weights)
                if engine is not None
                else Engine(setup.model, weights, slots, stop_tokens=frozenset({tokenizer.bos}))
            )
            passed = solved(partial(completions, engine, tokenizer), problems)
            task.output.write(name, json.dumps(passed).encode())
        found[stage] = agent.Rate(passed=sum(passed), total=len(passed)).to_json()
        task.display.show("HumanEval", len(found), len(SUITES_OF), "models")
    return found


def completions(engine: Engine, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Greedy continuations of plain text; empty where the prompt leaves no room in the context."""
    rows = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    room = [min(HUMANEVAL_TOKENS, engine.context - len(row)) for row in rows]
    fitting = [place for place, left in enumerate(room) if left > 0]
    texts = [""] * len(prompts)
    for place, one in zip(fitting, engine.generate([Request(rows[p], room[p]) for p in fitting]), strict=True):
        texts[place] = tokenizer.decode([token for token in one.tokens if token != tokenizer.bos])
    return texts


def played(task: Task, name: str, policy: Policy, every: Sequence[tasks.Task], soul: Soul) -> list[TaskResult]:
    """The results of all tasks; each group is published when it is done, so that a restart goes on with the next."""
    results: list[TaskResult] = []
    for first in range(0, len(every), TASKS_AT_ONCE):
        path = f"{name.replace(' ', '-')}/{first:06d}.jsonl"
        try:
            lines = task.output.read(path).decode().splitlines()
            results += [TaskResult.model_validate_json(line) for line in lines]
        except NotFound:
            group = agent.evaluate(policy, every[first : first + TASKS_AT_ONCE], soul)
            task.output.write(path, "".join(one.model_dump_json() + "\n" for one in group).encode())
            results += group
    return results


def summary(results: Sequence[TaskResult]) -> dict[str, Any]:
    """What the marker keeps of a suite."""
    rates = agent.by_family(results)
    mean, interval = agent.macro_average(rates)
    calls = sum(one.calls for one in results)
    return {
        "pass@1": mean,
        "interval": list(interval),
        "families": {family: rate.to_json() for family, rate in rates.items()},
        "adherence": {check: rate.to_json() for check, rate in agent.adherence(results).items()},
        "steps": sum(one.steps for one in results) / max(len(results), 1),
        "failed_calls": sum(one.failed_calls for one in results) / max(calls, 1),
        "transcripts": transcripts(results),
    }


def transcripts(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """A few conversations of each family, that passed and that failed."""
    kept: list[dict[str, Any]] = []
    counts: dict[tuple[str, bool], int] = {}
    for one in results:
        counts[one.family, one.passed] = number = counts.get((one.family, one.passed), 0) + 1
        if number <= TRANSCRIPTS:
            kept.append(json.loads(one.model_dump_json(include={"id", "family", "passed", "reason", "messages"})))
    return kept


def pass_at(attempts: Sequence[Sequence[TaskResult]]) -> dict[str, float]:
    """pass@k for every k up to the attempts, averaged over tasks."""
    passed = [sum(one.passed for one in same) for same in zip(*attempts, strict=True)]
    n = len(attempts)
    return {str(k): sum(agent.pass_at_k(n, c, k) for c in passed) / len(passed) for k in range(1, n + 1)}
