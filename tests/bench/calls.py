"""1,000 tool calls sampled from a base model that never saw one: under the grammar every one of them parses.

`python -m tests.bench.calls RUN [COUNT]`. A base model hardly ever begins a call, so the end of the turn is taken out of
the grammar; half of the calls are drawn at temperature 1, half at 3, where the likeliest token rarely wins.
"""

import sys
from collections import Counter
from pathlib import Path

from nanocode.agent.conversation import User, parse_step, render
from nanocode.agent.grammar import step_automaton
from nanocode.generate.automaton import Automaton
from nanocode.generate.engine import Engine, Request, Sampling
from nanocode.tasks.families import training_scenario
from nanocode.text import special
from tests.bench.trial import Bench

SLOTS, MAX_NEW = 64, 96


def main(run: str, count: int) -> None:
    bench = Bench(Path(run))
    tokenizer = bench.tokenizer
    model, weights = bench.model(bench.markers["pretrain"])
    whole = step_automaton(tokenizer, model.shape.vocab_size)
    following = whole.next.copy()
    following[0, tokenizer.special[special.ASSISTANT_END]] = -1
    only_calls = Automaton.build(following, whole.start, whole.stops)
    engine = Engine(model, weights, SLOTS, automaton=only_calls, few_shapes=True)
    tools: Counter[str] = Counter()
    for temperature in (1.0, 3.0):
        prompts = [training_scenario("calls", number).task.prompt for number in range(count // 2)]
        requests = [Request(render([User(text)], tokenizer).tokens, MAX_NEW, n) for n, text in enumerate(prompts)]
        for one in engine.generate(requests, Sampling(temperature)):
            step = parse_step(one.tokens, tokenizer)  # raises where it does not parse
            assert one.stopped
            assert step.call is not None
            tools[step.call.tool] += 1
    print(f"{sum(tools.values())} of {count // 2 * 2} calls parse: {dict(tools)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
