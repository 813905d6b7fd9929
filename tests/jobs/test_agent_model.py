"""Loading what a run has trained, and ask and eval on it: untrained weights, but everything else is real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli
from jobs.agent_model import AgentModel, load_agent
from jobs.engine_speaker import EngineSpeaker
from nanocode.agent.conversation import Step, User
from nanocode.agent.sandbox import Grade, best_grade
from nanocode.run.exits import ConfigurationError
from tests.jobs.tiny_agent import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "run"
    make_run(folder, "pretrain", "sft")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> AgentModel:
    """One for all: each engine compiles its own code."""
    return load_agent(str(run))


def test_the_newest_stage_that_is_done_speaks(run: Path, model: AgentModel) -> None:
    assert model.stage == "sft"
    assert load_agent(str(run), "pretrain").stage == "pretrain"
    with pytest.raises(ConfigurationError, match="stage preference is not done"):
        load_agent(str(run), "preference")


def test_a_run_without_weights_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    assert cli.main(["chat", str(tmp_path / "run")]) == 78
    assert cli.main(["chat", str(tmp_path / "nothing")]) == 78
    assert cli.main(["chat"]) == 2
    assert cli.main(["chat", "--endpoint", "http://localhost:1/v1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and "no stage that trains is done yet" in said[0]


@pytest.mark.slow
def test_what_is_streamed_is_what_the_step_says_and_every_step_parses(model: AgentModel) -> None:
    speaker = EngineSpeaker(model, temperature=1.0)
    for number in range(5):
        *pieces, step = speaker.stream([User(f"request {number}")])
        assert isinstance(step, Step) and step.tokens
        assert "".join(str(piece) for piece in pieces) == step.text.encode(errors="surrogateescape").decode(
            errors="replace"
        )


@pytest.mark.slow
def test_a_stream_that_is_left_can_be_followed_by_another(model: AgentModel) -> None:
    speaker = EngineSpeaker(model, temperature=1.0)
    first = speaker.stream([User("request")])
    next(first)
    first.close()  # type: ignore[attr-defined]
    *_, step = speaker.stream([User("request")])
    assert isinstance(step, Step)


def test_without_room_there_is_no_step(model: AgentModel) -> None:
    assert list(EngineSpeaker(model).stream([User("x y " * 200)])) == []


@pytest.mark.slow
def test_ask_says_how_it_ended(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["ask", str(run), "Where is `f`?", "--workspace", str(tmp_path), "--yes", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"ended", "message", "conversation"}
    assert code == (0 if said["ended"] == "done" else 1)
    assert said["conversation"][0] == {"user": "Where is `f`?"}
    assert cli.main(["ask", str(run), "x y " * 200, "--workspace", str(tmp_path)]) == 1
    assert cli.main(["ask", str(run), "x", "--workspace", str(tmp_path / "absent")]) == 2


@pytest.mark.slow
@pytest.mark.skipif(best_grade() is Grade.NONE, reason="commands run only where something holds them")
def test_eval_plays_a_file_of_tasks(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "suite.jsonl"
    suite.write_text(
        '{"id": "easy", "family": "free", "prompt": "Say something.", "check": {"bash": "true"}}\n'
        '{"id": "hard", "prompt": "Say no.", "files": {"a": "1"}, "check": {"answer": "^no, never$"}}\n'
    )
    assert cli.main(["eval", str(run), "--suite", str(suite), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["suite"], said["stage"], said["total"]) == (str(suite), "sft", 2)
    assert set(said["families"]) == {"free", "tasks"}
    assert 0 <= said["interval"][0] <= said["pass@1"] <= said["interval"][1] <= 1
    assert cli.main(["eval", str(run), "--suite", str(suite)]) == 0
    assert "95% interval" in capsys.readouterr().out
    assert cli.main(["eval", str(run), "--suite", "agnet"]) == 78


def test_help_and_endpoints_need_no_jax() -> None:
    program = (
        "import sys; from jobs.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "from jobs import chat, ask\nfrom jobs.speaker import open_speaker\n"
        "open_speaker(None, None, 'http://localhost:1/v1', 'some-model', 0.5)\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False).returncode == 0
