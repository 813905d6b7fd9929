"""The families by name, and how instances of them are made: `scenario("fix", "train", 17)`."""

from collections.abc import Callable, Iterator

from nanocode.tasks import changing, reading
from nanocode.tasks.draw import Draw, Novelty
from nanocode.tasks.task import Scenario

FAMILIES: dict[str, Callable[[str, Draw], Scenario]] = {
    "find": reading.find,
    "explain": reading.explain,
    "rename": changing.rename,
    "create": changing.create,
    "fix": changing.fix,
    "command": reading.command,
    "constraint": changing.constraint,
    "ask": reading.ask,
    "recover": reading.recover,
    "reject": changing.reject,
    "config": changing.config,
    "count": reading.count,
}
TRANSFER = ("config", "count")
"""Never trained on: what an agent makes of work it was not shown."""
TRAINED = tuple(name for name in FAMILIES if name not in TRANSFER)
CYCLE = (*TRAINED, "fix", "rename")
"""What training draws from, in turn: the two families with the longest way to go come twice."""


def scenario(family: str, stream: str, number: int, novelty: Novelty | None = None) -> Scenario:
    """Instance `number` of a family in a stream of its own (`train`, `test`, a seed...); the same for ever."""
    id = f"{stream}/{family}/{number}"
    return FAMILIES[family](id, Draw(id, novelty or Novelty()))


def training(stream: str, count: int) -> Iterator[Scenario]:
    """`count` instances of the training families, in turn."""
    for number in range(count):
        yield training_scenario(stream, number)


def training_scenario(stream: str, number: int) -> Scenario:
    """Instance `number` of the stream that training draws from."""
    return scenario(CYCLE[number % len(CYCLE)], stream, number)
