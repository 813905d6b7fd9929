"""The grammar of a step as a token automaton: whatever a model is, its tool calls parse.

    TEXT -> <|assistant_end|> | <|tool_call_start|> NAME (<|tool_arg|> KEY <|tool_val|> VALUE)* <|tool_call_end|>

Names and keys have to be spelled in the tokens of their own encoding, keys come in the tool's order, and required ones
may not be left out. A value of kind `line` is 1 to 6 digits.
"""

import numpy as np

from nanocode.agent.tools import LINE_DIGITS, TOOLS, Tool
from nanocode.generate.automaton import Automaton
from nanocode.text import special
from nanocode.text.tokenizer import Tokenizer

TEXT, STOP = 0, 1
FORBIDDEN = -1


class _Table:
    """Transitions under construction."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.rows: list[np.ndarray] = []
        structure = set(tokenizer.special.values())
        self.text = [index for index in range(tokenizer.vocab_size) if index not in structure]

    def state(self) -> int:
        self.rows.append(np.full(self.vocab_size, FORBIDDEN, np.int16))
        return len(self.rows) - 1

    def link(self, start: int, token: str, end: int) -> None:
        self.rows[start][self.tokenizer.special[token]] = end

    def spell(self, start: int, word: str, end: int) -> None:
        """From start to end by the tokens of a word; words that begin alike share their states."""
        *path, last = self.tokenizer.encode(word)
        for token in path:
            if self.rows[start][token] == FORBIDDEN:
                self.rows[start][token] = self.state()
            start = int(self.rows[start][token])
        assert self.rows[start][last] == FORBIDDEN, f"the tokens of {word!r} begin another name"
        self.rows[start][last] = end


def step_automaton(tokenizer: Tokenizer, vocab_size: int) -> Automaton:
    """What an assistant may write, over `vocab_size` ids, of which those beyond the tokenizer's are never allowed."""
    table = _Table(tokenizer, vocab_size)
    text, stop, name = table.state(), table.state(), table.state()
    assert (text, stop) == (TEXT, STOP)
    table.rows[text][table.text] = text
    table.link(text, special.ASSISTANT_END, stop)
    table.link(text, special.TOOL_CALL_START, name)
    for tool in TOOLS.values():
        named = table.state()
        table.spell(name, tool.name, named)
        _arguments(table, tool, named)
    return Automaton.build(np.stack(table.rows), TEXT, [STOP])


def _arguments(table: _Table, tool: Tool, named: int) -> None:
    """From a tool's name over its arguments to the end of the call."""
    ready = [named]  # the states in which the next argument may begin or, if none is required, the call may end
    for place, parameter in enumerate(tool.parameters):
        key, keyed = table.state(), table.state()
        keys = {key}
        for start in ready:
            begun = int(table.rows[start][table.tokenizer.special[special.TOOL_ARG]])
            if begun == FORBIDDEN:
                table.link(start, special.TOOL_ARG, key)
            else:  # an earlier optional argument may begin here too
                keys.add(begun)
        for one in keys:
            table.spell(one, parameter.name, keyed)
        if parameter.kind == "text":
            value = table.state()
            table.rows[value][table.text] = value
            table.link(keyed, special.TOOL_VAL, value)
            written = [value]
        else:
            written = _digits(table, keyed)
        ready = written if parameter.required else [*ready, *written]
        if not any(later.required for later in tool.parameters[place + 1 :]):
            for start in written:
                table.link(start, special.TOOL_CALL_END, STOP)
    if not any(parameter.required for parameter in tool.parameters):
        table.link(named, special.TOOL_CALL_END, STOP)


def _digits(table: _Table, keyed: int) -> list[int]:
    """From a key over 1 to LINE_DIGITS digits; the states after each number of digits."""
    digits = [(index, len(data)) for index in table.text if (data := table.tokenizer.bytes_of[index]).isdigit()]
    begin = table.state()
    table.link(keyed, special.TOOL_VAL, begin)
    states = [begin, *(table.state() for _ in range(LINE_DIGITS))]
    for have, state in enumerate(states):
        for index, size in digits:
            if have + size <= LINE_DIGITS:
                table.rows[state][index] = states[have + size]
    return states[1:]
