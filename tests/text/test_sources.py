"""Sources: every format is read, and whatever is wrong is named with file and row."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanocode.config.settings import Source
from nanocode.storage.objects import open_store
from nanocode.text import embedded, filters, mixture
from nanocode.text.sources import JsonLines, Parquet, SourceError, SourceUnavailable
from tests.gcs import BUCKET, gcs_url, server  # noqa: F401  (a fixture)

TEXTS = [f"document number {number} has words of its own, {number * 7} of them" for number in range(300)]


def texts(location: str, **more: str) -> list[str]:
    (one,) = mixture.open_sources([Source(location=location, **more)])  # type: ignore[arg-type]
    return [document.text for unit in one.source.units() for document in unit.read()]


def write_parquet(path: Path, column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(300), column: TEXTS}), path, row_group_size=100)
    return path


def test_parquet_by_file_folder_and_pattern(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/a.parquet")
    write_parquet(tmp_path / "data/deep/b.parquet")
    assert texts(str(tmp_path / "data/a.parquet")) == TEXTS
    assert texts(str(tmp_path / "data")) == TEXTS * 2
    assert texts(str(tmp_path / "data/*.parquet")) == TEXTS


def test_json_lines_plain_and_compressed(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"content": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines + "\n")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(lines.encode()))
    assert texts(str(tmp_path / "a.jsonl"), column="content") == TEXTS
    assert texts(str(tmp_path / "*.json.gz"), column="content") == TEXTS


def test_a_bucket_is_read_like_a_folder(gcs_url: str, tmp_path: Path) -> None:  # noqa: F811
    store = open_store(gcs_url)
    store.upload(write_parquet(tmp_path / "a.parquet"), "data/a.parquet")
    assert texts(f"{gcs_url}/data/a.parquet") == TEXTS
    assert texts(f"{gcs_url}/data/*.parquet") == TEXTS


def test_rows_without_text_are_passed_over(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "a.parquet")
    assert texts(str(tmp_path / "a.parquet")) == ["one", "two"]


def test_a_truncated_parquet_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"a\.parquet is damaged or truncated"):
        texts(str(path))


def test_a_damaged_row_group_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)  # pages, not the footer
    path.write_bytes(data)
    with pytest.raises((SourceError, SourceUnavailable), match=r"row group \d, row \d+ of .*a\.parquet"):
        texts(str(path))


@pytest.mark.parametrize(
    ("line", "told"),
    [("{", "line 2 is not JSON"), ('{"other": 1}', "line 2 has no text in 'text'"), ("[1]", "line 2 has no text")],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(SourceError, match=told):
        texts(str(tmp_path / "a.jsonl"))


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    data = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[:-30])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz.* is damaged or truncated"):
        texts(str(tmp_path / "a.jsonl.gz"))


def test_absent_empty_and_wrong_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "a.parquet", column="body")
    for location, told in [
        (tmp_path / "absent", "is not there"),
        (tmp_path / "empty", "no text or source files"),
        (tmp_path / "a.parquet", "no column 'text', only id, body"),
        (tmp_path / "*.parquet.gz", "matches no|is not there"),
    ]:
        with pytest.raises(SourceError, match=told):
            texts(str(location))


def test_trouble_on_the_way_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr("nanocode.text.sources.filesystem", refuse)
    for source in (Parquet("hf://datasets/o/n@main/*.parquet", "english"), JsonLines("gs://b/a.jsonl", "code")):
        with pytest.raises(SourceUnavailable, match="connection reset"):
            list(source.units())


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("def f(x):\n    return x + 1\n" * 9, "code", None),
        ("short", "english", "short"),
        ("x = 1\n" * 200_000, "code", "long"),
        ("bytes \ufffd\ufffd that were no text " * 9, "english", "encoding"),
        ("# Generated by protoc. DO NOT EDIT!\n" + "import os\n" * 20, "code", "generated"),
        ("def main():\n" + "    # see how files are generated by the tool\n" * 60, "code", "generated"),
        ("var a=1;" * 3000, "code", "long lines"),
        ("0x00, 0x01, 0x02,\n" * 40, "code", "no text"),
        ("This text is Generated by people. " * 9, "english", None),
    ],
)
def test_filters(text: str, kind: filters.Kind, reason: str | None) -> None:
    assert filters.reason_to_drop(text, kind) == reason


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small interpreter: a standard library and 40 installed packages, some of them held out."""
    stdlib, site = tmp_path / "lib", tmp_path / "site"
    for folder, count in ((stdlib, 20), (site, 20)):
        folder.mkdir()
        for number in range(count):
            words = [f"{folder.name}{number}w{word}" for word in range(4000)]
            (folder / f"mod{number}.py").write_text(f'"""{" ".join(words[:100])}"""\n' + "\n".join(words) + "\n")
    paths = {"stdlib": str(stdlib), "purelib": str(site), "platlib": str(site)}
    monkeypatch.setattr(embedded.sysconfig, "get_paths", lambda: paths)
    caches = (embedded.installed, embedded.held_out, embedded.held_out_shingles)
    for cached in caches:
        cached.cache_clear()
    yield site
    for cached in caches:
        cached.cache_clear()


def read_embedded(kind: embedded.Kind) -> list[embedded.Document]:
    return [document for unit in embedded.Embedded(kind).units() for document in unit.read()]


def test_whole_packages_are_held_out_of_both_halves(packages: Path) -> None:
    held = embedded.held_out()
    assert sum(name.startswith("stdlib:") for name in held) == 3
    assert len(held) == 6
    for document in read_embedded("code"):
        assert document.held_out == (document.package in held)
    assert {document.package for document in read_embedded("code") if document.held_out} == held


def test_what_nearly_repeats_a_held_out_document_is_not_trained_on(packages: Path) -> None:
    before = [document.origin for document in read_embedded("code") if not document.held_out]
    victim = next(document for document in read_embedded("code") if document.held_out)
    embedded.installed.cache_clear()
    (packages / "vendored.py").write_text("# a copy\n" + victim.text.replace("w17\n", "changed\n"))
    (packages / "own.py").write_text("\n".join(f"fresh{word}" for word in range(500)))
    after = [document.origin for document in read_embedded("code") if not document.held_out]
    assert sorted(set(after) - set(before)) == [str(packages / "own.py")]


def test_the_real_interpreter_has_code_and_english(tmp_path: Path) -> None:
    sources = mixture.open_sources([Source(location="embedded")])
    assert [one.share for one in sources] == [0.5, 0.5]
    sample = list(mixture.training_texts(sources, 0.2, 0.01))
    assert sum(map(len, sample)) >= 0.2e6
    assert any("def " in text for text in sample)
