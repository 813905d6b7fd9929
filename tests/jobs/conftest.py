"""One run with tokenizer and corpus done, copied for whoever trains on it."""

import shutil
import socket
from pathlib import Path

import pytest

from tests.gcs import gcs_url  # noqa: F401  (a fixture)
from tests.jobs.runs import AGENT, BASE, begin, nanocode, write_sources


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("text") / "sources")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    run = tmp_path_factory.mktemp("prepared") / "run"
    done = nanocode(*begin(run, sources), "--stages", "tokenizer,corpus")
    assert done.returncode == 0, done.stderr + done.stdout
    return run


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Path:
    """A run directory of one's own that pretraining can begin in."""
    return Path(shutil.copytree(prepared, tmp_path / "run"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """The same run, trained without any interruption, evaluated and reported."""
    run = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "run"))
    done = nanocode("run", "--run-dir", str(run), "--stages", BASE)
    assert done.returncode == 0, done.stderr + done.stdout
    return run


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """Another run, through every stage there is, without any interruption."""
    run = tmp_path_factory.mktemp("agent") / "run"
    done = nanocode(*begin(run, sources, *AGENT))
    assert done.returncode == 0, done.stderr + done.stdout
    return run


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.hookimpl(tryfirst=True)  # before the one of all tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs a trained or a prepared run takes seconds; those that need the same one are done by one process."""
    for item in items:
        runs = {"prepared", "trained", "agent"} & set(getattr(item, "fixturenames", ()))
        if runs:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("agent" if "agent" in runs else "trained"))
