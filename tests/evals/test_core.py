"""CORE against the answers of an independent PyTorch implementation, and bundles that are not what they should be."""

import http.server
import json
import shutil
import socket
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nanocode.evals.bundle import CoreTask, read_bundle
from nanocode.evals.core import Evaluator, Scored, core_metric
from nanocode.model import huggingface
from nanocode.run.exits import ConfigurationError
from nanocode.storage.objects import StorageError
from nanocode.train.mesh import make_mesh
from nanocode.train.step import abstract_model

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
BUNDLE = GOLDEN / "core-bundle"


def encode(text: str) -> list[int]:
    return [ord(char) for char in text]


@pytest.fixture(scope="module")
def model():
    folder = next(path.parent for path in GOLDEN.rglob("model.safetensors"))
    return huggingface.load(folder)


def test_every_answer_of_the_golden_bundle_is_reproduced_on_eight_devices(model) -> None:
    shape, weights = model
    expected = json.loads((BUNDLE / "expected.json").read_text())
    evaluator = Evaluator(make_mesh(), abstract_model(shape, "float32"), encode, 0, batch_rows=32, longest=512)
    results = [evaluator(weights, task) for task in read_bundle(str(BUNDLE)).tasks]
    assert len(results) == 4
    for result in results:
        wanted = expected["tasks"][result.label]
        assert result.correct == wanted["correct_in_shuffled_order"], result.label
        assert result.accuracy == pytest.approx(wanted["accuracy"])
        assert result.centered == pytest.approx(expected["centered"][result.label])
    assert core_metric(results) == pytest.approx(expected["core"])


def test_answers_do_not_depend_on_how_rows_are_batched(model) -> None:
    shape, weights = model
    task = read_bundle(str(BUNDLE)).tasks[2]
    few, many = (
        Evaluator(make_mesh(), abstract_model(shape, "float32"), encode, 0, rows, 512)(weights, task, most=12)
        for rows in (8, 40)
    )
    assert few == many
    assert len(few.correct) == 12


def test_a_row_longer_than_the_context_loses_its_beginning() -> None:
    row = Scored(list(range(10)), start=7, end=9).cropped(4)
    assert row == Scored([6, 7, 8, 9], start=1, end=3)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("file", "harm", "told"),
    [
        ("core.yaml", lambda text: text.replace("multiple_choice", "essay", 1), "unknown type 'essay'"),
        ("core.yaml", lambda text: text.replace("toy_mc.jsonl", "../../../etc/passwd", 1), "outside of the bundle"),
        ("core.yaml", lambda text: text.replace("toy_lm.jsonl", "absent.jsonl"), "absent.jsonl"),
        ("eval_data/toy_lm.jsonl", lambda text: text.replace('"continuation"', '"cont"', 1), "line 1"),
        ("eval_data/toy_lm.jsonl", lambda text: text + "{\n", "line 41"),
        ("eval_meta_data.csv", lambda text: text.replace("toy_lm", "other"), "toy_lm"),
    ],
)
def test_a_damaged_bundle_is_named(bundle: Path, file: str, harm, told: str) -> None:
    path = bundle / file
    path.write_text(harm(path.read_text()))
    with pytest.raises(ConfigurationError) as error:
        read_bundle(str(bundle))
    assert told in str(error.value)


def zipped(bundle: Path, path: Path, prefix: str = "eval_bundle/") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for one in bundle.rglob("*"):
            if one.is_file():
                file.write(one, prefix + str(one.relative_to(bundle)))
    return path


@pytest.fixture
def address(tmp_path: Path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_bundle_can_be_a_zip_or_a_url(bundle: Path, tmp_path: Path, address) -> None:
    folder, url = address
    archive = zipped(bundle, folder / "bundle.zip")
    cache = tmp_path / "cache"
    wanted = read_bundle(str(bundle))
    assert read_bundle(str(archive), cache) == wanted
    assert read_bundle(f"{url}/bundle.zip", cache) == wanted
    archive.unlink()
    assert read_bundle(f"{url}/bundle.zip", cache) == wanted, "it is kept"
    with pytest.raises(StorageError, match="cannot fetch"):
        read_bundle(f"{url}/other.zip", cache)
    assert not list(cache.glob("tmp*"))


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanocode.evals.bundle.DOWNLOAD_SECONDS", 0.2)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(StorageError, match="cannot fetch"):
            read_bundle(f"http://127.0.0.1:{silent.getsockname()[1]}/bundle.zip", tmp_path / "cache")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "..\\out"])
def test_an_archive_cannot_write_outside(bundle: Path, tmp_path: Path, name: str) -> None:
    archive = zipped(bundle, tmp_path / "bundle.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "gotcha")
    with pytest.raises(ConfigurationError, match="leaves its folder"):
        read_bundle(str(archive), tmp_path / "cache")
    assert not list(tmp_path.rglob("out"))


def test_an_archive_cannot_hold_links(bundle: Path, tmp_path: Path) -> None:
    archive = zipped(bundle, tmp_path / "bundle.zip")
    link = zipfile.ZipInfo("eval_bundle/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ConfigurationError, match="leaves its folder"):
        read_bundle(str(archive), tmp_path / "cache")


def test_an_archive_of_damaged_bytes_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"not a zip")
    with pytest.raises(ConfigurationError, match="no zip archive"):
        read_bundle(str(tmp_path / "b.zip"), tmp_path / "cache")


def test_guessing_is_zero_and_all_right_is_one() -> None:
    from nanocode.evals.core import TaskResult

    assert TaskResult("a", 25.0, [True, False, False, False]).centered == pytest.approx(0)
    assert TaskResult("a", 25.0, [True] * 4).centered == pytest.approx(1)
    assert np.isclose(core_metric([TaskResult("a", 50.0, [True]), TaskResult("b", 50.0, [True, False])]), 0.5)
    assert CoreTask("a", "schema", 0, " ", 50.0, ()).items == ()
