"""What make does about the accelerator that is asked for. Dry runs: nothing is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One that is set up for cpu."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/ready-cpu").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_another_extra_is_installed_though_one_is_there(checkout: Path) -> None:
    assert "pip install" not in make(checkout, "demo").stdout
    assert '".[dev,cuda]"' in make(checkout, "demo", "EXTRA=cuda").stdout


@pytest.mark.parametrize("extra", ["gpu", "", "cpu cuda"])
def test_an_unknown_extra_is_refused_in_one_line(checkout: Path, extra: str) -> None:
    done = make(checkout, "demo", f"EXTRA={extra}")
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "say EXTRA=cpu, EXTRA=cuda or EXTRA=tpu" in done.stderr


@pytest.mark.parametrize("target", ["deploy", "deploy-d13"])
def test_deploy_alone_or_of_no_preset_says_which_there_are(checkout: Path, target: str) -> None:
    command = ["make", "--no-print-directory", target]  # a make that runs the tests hands its own flags down
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (rule,) = re.findall(r"^(deploy-.*): deploy-%", (checkout / "Makefile").read_text(), re.M)
    (named,) = done.stdout.splitlines()
    assert all(name in named for name in rule.split()) and "deploy-d24" in rule
