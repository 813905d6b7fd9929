"""Preference pairs from the model's own attempts at training tasks: one that passes and one that fails."""

from collections.abc import Sequence

from nanocode.agent.conversation import Message
from nanocode.agent.episode import Policy
from nanocode.agent.soul import Soul
from nanocode.tasks.families import training_scenario
from nanocode.tasks.playing import Attempt, attempts
from nanocode.tasks.task import Task

Pair = tuple[list[Message], list[Message]]


def training_tasks(seed: int, first: int, count: int) -> list[Task]:
    """Tasks of the training families that no rollout was made of."""
    return [training_scenario(f"preference-{seed}", number).task for number in range(first, first + count)]


def sampled_pairs(policy: Policy, tasks: Sequence[Task], samples: int, soul: Soul) -> tuple[list[Pair], dict[str, int]]:
    """A pair of every task that was both done and not done, and how the attempts went.

    Chosen: passes its check and keeps the SOUL. Rejected: does not.
    """
    played = attempts(policy, [task for task in tasks for _ in range(samples)])
    pairs: list[Pair] = []
    counts = {"attempts": len(played), "passed": 0, "tasks with a pair": 0}
    for place in range(0, len(played), samples):
        group = played[place : place + samples]
        good = [one for one in group if _is_good(one, soul)]
        bad = [one for one in group if one not in good]
        counts["passed"] += len(good)
        if good and bad:
            counts["tasks with a pair"] += 1
            pairs.append((good[0].messages, bad[0].messages))
    return pairs, counts


def _is_good(one: Attempt, soul: Soul) -> bool:
    return one.verdict.passed and not soul.broken(one.messages)
