"""Rows from files of every form, folders in a hub's layout, packages; and what is said where there are none."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.suites.source import Hub, field, in_sample, pick, published, rows, settings

ROWS = [{"a": "1", "b": "é"}, {"a": "2", "b": "x,\ny"}]
HOW = "Get it from there."


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("QWEN3_EVAL_DATA", raising=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jsonl", "\n".join(json.dumps(row) for row in ROWS) + "\n\n"),
        ("x.json", json.dumps(ROWS)),
        ("x.json", json.dumps({"data": ROWS})),
        ("x.json", json.dumps({"rows": [{"row": row} for row in ROWS]})),
        ("x.json", "\n".join(json.dumps(row) for row in ROWS)),
        ("x.csv", '\ufeffa,b\r\n1,é\r\n2,"x,\ny"\r\n'),
        ("x.tsv", 'a\tb\n1\té\n2\t"x,\ny"\n'),
    ],
)
def test_forms(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    for file in (name, f"{name}.gz"):
        found = rows("s", local=str(tmp_path / file), how=HOW)
        assert [{k: v for k, v in row.items() if k != "_file"} for row in found] == ROWS
        assert found[0]["_file"] == file


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")  # extra: eval
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.ipc.new_stream(tmp_path / "y.arrow", table.schema) as out:
        out.write_table(table)
    assert [row["b"] for row in rows("s", local=str(tmp_path), how=HOW)] == [row["b"] for row in ROWS] * 2


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"x\.parquet.*qwen3\[eval\]"):
        rows("s", local=str(tmp_path), how=HOW)


def test_config_and_split_choose_among_files() -> None:
    files = [
        "README.md",
        "main/test-00000-of-00001.parquet",
        "main/train-00000-of-00001.parquet",
        "socratic/test.jsonl",
    ]
    assert pick("s", files, Hub("d", "main", "test")) == ["main/test-00000-of-00001.parquet"]
    assert pick("s", files, Hub("d", None, "test")) == ["main/test-00000-of-00001.parquet", "socratic/test.jsonl"]
    assert pick("s", ["gpqa_diamond.csv", "gpqa_main.csv"], Hub("d", "gpqa_diamond", "train")) == ["gpqa_diamond.csv"]
    assert pick("s", ["mine.jsonl"], Hub("d", "main", "test")) == ["mine.jsonl"]
    assert pick("s", ["x.md"], Hub("d", "main", "test")) == []
    with pytest.raises(UsageError, match="no file of other, test"):
        pick("s", files, Hub("d", "other", "test"))
    with pytest.raises(UsageError, match="no file of main, dev"):
        pick("s", files, Hub("d", "main", "dev"))


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x\.jsonl: line 2 is not JSON"),
        ("x.jsonl", b"\xff\xfe", r"x\.jsonl: cannot be read"),
        ("x.json", b"[1]", r"x\.json: row 1 is not an object"),
        ("x.csv", b"a,b\n1\n", r"x\.csv: cannot be read \(row 1"),
        ("x.csv", b"a,b\n1,2,3\n", r"x\.csv: cannot be read \(row 1"),
        ("x.json.gz", b"no gzip", r"x\.json\.gz: cannot be read"),
        ("x.txt", b"a", r"x\.txt: not one of"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=match):
        rows("s", local=str(tmp_path / name), how=HOW)


def test_a_folder_for_all_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_EVAL_DATA", str(tmp_path))
    (tmp_path / "s.jsonl").write_text('{"a": 1}')
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "rows.json").write_text('[{"a": 2}]')
    assert rows("s", how=HOW)[0]["a"] == 1
    assert rows("t", how=HOW)[0] == {"a": 2, "_file": "rows.json"}


def test_files_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_data_package").mkdir()
    (tmp_path / "a_data_package" / "__init__.py").write_text("raise RuntimeError('is not imported')")
    (tmp_path / "a_data_package" / "d.jsonl").write_text('{"a": 3}')
    monkeypatch.syspath_prepend(tmp_path)
    assert rows("s", package=("a_data_package", "*.jsonl"), how=HOW)[0]["a"] == 3
    with pytest.raises(UsageError, match=r"a_data_package has no \*\.csv"):
        rows("s", package=("a_data_package", "*.csv"), how=HOW)


def test_what_is_said_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"s: there is no file or folder .*gone; Get it from there"):
        rows("s", local=str(tmp_path / "gone"), how=HOW)
    with pytest.raises(UsageError, match=r"s: its data is not here\. Get it from there\. .*QWEN3_EVAL_DATA.*s\.jsonl"):
        rows("s", hub=("org/data", None, None), package=("no_such_package", "x"), how=HOW)
    with pytest.raises(UsageError, match="no data file"):
        rows("s", local=str(tmp_path), how=HOW)


def test_columns_that_are_missing_are_named() -> None:
    assert field({"b": 1}, "a", "b") == 1
    with pytest.raises(UsageError, match=r"f\.csv: no column 'a', only b"):
        field({"b": 1, "_file": "f.csv"}, "a")


def test_settings_of_generated_suites() -> None:
    defaults = {"count": 5, "lengths": (1, 2), "names": ("all",)}
    assert settings("s", None, defaults) == defaults
    assert settings("s", "count=7, lengths=4, names=x+y", defaults) == {
        "count": 7,
        "lengths": (4,),
        "names": ("x", "y"),
    }
    for text in ("counts=7", "count", "count=-1", "count=1+2", "/some/file.jsonl"):
        with pytest.raises(UsageError, match=r"^s: "):
            settings("s", text, defaults)


def test_samples_and_tables() -> None:
    assert 70 < sum(in_sample(str(i)) for i in range(1000)) < 130
    table = published("1 2", "- 3", "t", ("4B", "8B"))
    assert [(r.model, r.mode, r.value) for r in table] == [
        ("Qwen3-4B", "think", 1.0),
        ("Qwen3-8B", "think", 2.0),
        ("Qwen3-8B", "no-think", 3.0),
    ]


class FakeHub:
    """What of huggingface_hub is used: a listing, and a snapshot in a folder. reachable: whether there is a listing."""

    def __init__(self, folder: Path, reachable: bool = True) -> None:
        self.folder, self.reachable, self.asked = folder, reachable, []

    def HfApi(self) -> FakeHub:
        return self

    def dataset_info(self, dataset: str, revision: str, timeout: int) -> SimpleNamespace:
        if not self.reachable:
            raise ConnectionError("no network\nat all")
        names = ["README.md", "main/test.jsonl", "main/train.jsonl", "other/test.jsonl"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, dataset: str, **given: object) -> str:
        self.asked.append((dataset, given))
        if given.get("local_files_only") and not any(self.folder.iterdir()):
            raise FileNotFoundError("not in the cache")
        for name in given.get("allow_patterns", ()):  # type: ignore[attr-defined]
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text('{"a": 1}')
        return str(self.folder)


def test_the_hub_gives_the_files_of_a_config_and_its_cache_serves_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    where = ("org/data", "main", "test", "abc")
    assert rows("s", hub=where, how=HOW) == [{"a": 1, "_file": "main/test.jsonl"}]
    wanted = {"repo_type": "dataset", "revision": "abc", "allow_patterns": ["main/test.jsonl"]}
    assert hub.asked == [("org/data", wanted)]
    hub.reachable = False
    assert rows("s", hub=where, how=HOW) == [{"a": 1, "_file": "main/test.jsonl"}]
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(tmp_path / "empty", reachable=False))
    with pytest.raises(UsageError, match=r"org/data at 'abc' on the hub: no network\)$"):
        rows("s", hub=where, how=HOW)
