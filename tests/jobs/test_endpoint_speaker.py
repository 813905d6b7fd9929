"""An endpoint as a speaker: what it says comes in pieces, and its trouble is one line of the chat."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from jobs import cli
from jobs.endpoint_speaker import EndpointSpeaker
from jobs.transcript import Transcript
from jobs.turn import Desk, open_workspace
from nanocode.agent.conversation import Step, User
from tests.synth.server import Answer, delta, events, failing, serving

HELLO = events(delta(content="Hel"), delta(content="lo."), delta("stop"))


@contextmanager
def sitting(url: str, folder: Path, shown: io.StringIO) -> Iterator[Desk]:
    speaker = EndpointSpeaker(url, "some-model", temperature=0.5)
    yield Desk(speaker, open_workspace(folder, 4096, False), Transcript(Console(file=shown)), lambda call: "no")
    speaker.close()


def test_text_comes_in_pieces_and_the_temperature_is_asked_for(tmp_path: Path) -> None:
    shown = io.StringIO()
    with serving([HELLO]) as server, sitting(server.url, tmp_path, shown) as one:
        assert list(one.speaker.stream([User("Hi.")])) == ["Hel", "lo.", Step("Hello.")]
        assert one.turn((), "Hi.").ended == "done"
        assert server.requests[0]["temperature"] == 0.5
    assert shown.getvalue().strip() == "Hello."


@pytest.mark.parametrize("answer", [failing(401, "bad key"), failing(404, "no such model")])
def test_trouble_is_a_line_and_the_turn_is_over(tmp_path: Path, answer: Answer) -> None:
    shown = io.StringIO()
    with serving([answer]) as server, sitting(server.url, tmp_path, shown) as one:
        said = one.turn((), "Hi.")
    assert (said.ended, said.messages[-1]) == ("failed", Step("Stopped."))
    assert len(shown.getvalue().strip().splitlines()) == 1 and "some-model" in shown.getvalue()


def test_an_address_that_is_none_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--endpoint", "ftp://x", "--model", "m"]) == 2
    assert "write http(s)://HOST/v1" in capsys.readouterr().err
