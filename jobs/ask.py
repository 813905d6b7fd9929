"""`nanocode ask`: one request, one turn, and out."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from jobs import prompts
from jobs.speaker import Speaker
from jobs.transcript import Transcript
from jobs.turn import Answer, Desk, open_workspace
from nanocode.agent.conversation import Step, to_json
from nanocode.agent.tools import Call
from nanocode.run.exits import Exit


def ask(speaker: Speaker, request: str, workspace: Path, yes: bool, as_json: bool, unsafe_bash: bool) -> int:
    """Exit code 0 when the turn ended with a message, 1 when it did not.

    With `as_json` stdout holds one JSON object; what would be shown goes to stderr if that is a terminal.
    """
    stream = sys.stderr if as_json else sys.stdout
    console = Console(highlight=False, file=stream, quiet=as_json and not stream.isatty())
    there = open_workspace(workspace, speaker.context, unsafe_bash)
    can_ask = sys.stdin.isatty() and stream.isatty()
    answer: Callable[[Call], Answer] = prompts.allow if yes else prompts.refuse
    if can_ask and not yes:
        answer = partial(prompts.ask_on_terminal, stream=stream)
    desk = Desk(speaker, there, Transcript(console), answer)
    if not yes and not can_ask:
        desk.transcript.note("(no terminal to ask on: Edit and Bash are rejected; --yes allows them)")
    said = desk.turn((), request)
    if said.ended != "done":
        desk.transcript.complain(f"the agent did not come to an end: {said.ended}")
    if as_json:
        last = said.messages[-1]
        message = last.text if isinstance(last, Step) and said.ended == "done" else None
        print(json.dumps({"ended": said.ended, "message": message, "conversation": to_json(said.messages)}))
    return Exit.DONE if said.ended == "done" else Exit.FAILED
