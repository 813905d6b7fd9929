"""Conversations of every shape, for property tests."""

from hypothesis import strategies as st

from nanocode.agent.conversation import Message, Result, Step, User
from nanocode.agent.tools import TOOLS, Call
from nanocode.text.special import SPECIAL_TOKENS

# Any text, and often one that would be structure if text could be.
TEXT = st.one_of(
    st.text(max_size=12),
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "Read", "path", "\n", " ", "é", "→", "\x00", "😀"]), max_size=4).map(
        "".join
    ),
)
LINE = st.integers(0, 999_999).map(str)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call that fits its tool, with any of its optional arguments."""
    tool = draw(st.sampled_from(list(TOOLS.values())))
    return Call(
        tool.name,
        {
            parameter.name: draw(LINE if parameter.kind == "line" else TEXT)
            for parameter in tool.parameters
            if parameter.required or draw(st.booleans())
        },
    )


CALLING = st.builds(Step, TEXT, calls())
ENDING = st.builds(Step, TEXT)
STEPS = st.one_of(CALLING, ENDING)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Whole turns, and perhaps one that is not at its end."""
    found: list[Message] = []
    for _ in range(draw(st.integers(0, 3))):
        found.append(User(draw(TEXT)))
        for step in draw(st.lists(CALLING, max_size=3)):
            found += [step, Result(draw(TEXT))]
        found.append(draw(ENDING))
    if draw(st.booleans()):
        found.append(User(draw(TEXT)))
        for step in draw(st.lists(CALLING, max_size=2)):
            found += [step, Result(draw(TEXT))]
        if draw(st.booleans()):
            found.append(draw(CALLING))
    return found
