"""Downloading from hubs: a fake server speaks both dialects, with faults."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from qwen3.checkpoint import list_cached, load_weights, resolve
from qwen3.checkpoint.download import PARTIAL, StderrProgress
from qwen3.errors import (
    ConfigError,
    CorruptFileError,
    ModelNotFoundError,
    Qwen3Error,
    RemoteError,
    UnsafeFileError,
    UsageError,
)
from tests.checkpoint.builders import meta_model
from tests.checkpoint.fake_hub import FakeHub, free_port

REPO = "someone/tiny"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(params=["huggingface", "modelscope"])
def either(request: pytest.FixtureRequest, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The fake hub in both dialects."""
    monkeypatch.setenv("QWEN3_HUB", request.param)
    return hub


def quiet(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def test_download_then_cache_then_offline(either: FakeHub, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(dense) | {"README.md": b"# no", "pytorch_model.bin": b"never", "tokenizer.json": b"{}"}
    commit = either.add(REPO, files)
    calls: list[tuple[str, int, int]] = []
    found = resolve(REPO, progress=lambda *call: calls.append(call))
    assert (found.source, found.repo, found.kind) == ("download", REPO, "folder")
    assert found.sha256 == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert {path.name for path in found.path.iterdir()} == set(files) - {"README.md", "pytorch_model.bin"}
    assert all((found.path / path.name).read_bytes() == files[path.name] for path in found.path.iterdir())
    assert "pytorch_model.bin" not in either.fetched()
    size = len(files["model.safetensors"])
    assert [calls[0][1], calls[-1][1]] == [0, size]
    assert {call[2] for call in calls} == {size}
    assert "0.00 GB in 1 file" in calls[0][0]
    if "huggingface" in str(found.path) or "hub" in found.path.parts:
        assert found.commit == commit
    model = meta_model()
    assert load_weights(model, found.path).tensors == 24

    either.requests.clear()
    again = resolve(REPO, progress=quiet)
    assert (again.path, again.source, either.requests) == (found.path, "cache", [])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve(f"{REPO}@{found.commit}").path == found.path
    assert resolve(f"{REPO}@{found.commit[:8]}").path == found.path
    assert either.requests == []
    assert f"{REPO}@" in again.describe()
    assert str(found.commit) in again.describe()


def test_shards_and_listing(either: FakeHub, sharded: Path) -> None:
    either.add(REPO, files_of(sharded))
    found = resolve(REPO, progress=quiet)
    assert load_weights(meta_model(), found.path).tensors == 24
    [cached] = [model for model in list_cached() if model.source != "embedded"]
    assert (cached.name, cached.complete, cached.commit) == (REPO, True, found.commit)
    assert cached.bytes == sum(path.stat().st_size for path in sharded.iterdir())
    assert cached.revisions in (("main",), ("master",))
    (found.path / "model-00002-of-00005.safetensors").unlink()
    assert [model.complete for model in list_cached() if model.source != "embedded"] == [False]


def test_cut_connection_goes_on(either: FakeHub, dense: Path) -> None:
    either.add(REPO, files_of(dense))
    either.cut_once["model.safetensors"] = 10_000
    found = resolve(REPO, progress=quiet)
    assert (found.path / "model.safetensors").read_bytes() == (dense / "model.safetensors").read_bytes()
    ranges = [entry[2] for entry in either.requests if entry[:2] == ("GET", "model.safetensors")]
    assert ranges == [None, "bytes=10000-"]


def test_later_run_goes_on(either: FakeHub, dense: Path, cache: Path) -> None:
    files = files_of(dense)
    either.add(REPO, files)
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    roots = [cache / "models--someone--tiny", cache.parents[1] / "modelscope" / "models--someone--tiny"]
    for root in roots:
        (root / "blobs").mkdir(parents=True)
        (root / "blobs" / (digest + PARTIAL)).write_bytes(files["model.safetensors"][:5000])
    done: list[int] = []
    found = resolve(REPO, progress=lambda what, count, total: done.append(count))
    assert load_weights(meta_model(), found.path).tensors == 24
    assert done[0] == 5000
    assert ("GET", "model.safetensors", "bytes=5000-") in [entry[:3] for entry in either.requests]
    assert not list((found.path.parents[1] / "blobs").glob("*" + PARTIAL))


def test_bad_old_part_is_fetched_again(either: FakeHub, dense: Path, cache: Path) -> None:
    files = files_of(dense)
    either.add(REPO, files)
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    for root in (cache / "models--someone--tiny", cache.parents[1] / "modelscope" / "models--someone--tiny"):
        (root / "blobs").mkdir(parents=True)
        (root / "blobs" / (digest + PARTIAL)).write_bytes(b"x" * 5000)
    done: list[int] = []
    found = resolve(REPO, progress=lambda what, count, total: done.append(count))
    assert (found.path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert done[-1] == len(files["model.safetensors"])


def test_server_without_ranges(either: FakeHub, dense: Path) -> None:
    either.add(REPO, files_of(dense))
    either.no_range = True
    either.cut_once["model.safetensors"] = 10_000
    done: list[int] = []
    found = resolve(REPO, progress=lambda what, count, total: done.append(count))
    assert (found.path / "model.safetensors").read_bytes() == (dense / "model.safetensors").read_bytes()
    assert done[-1] == (dense / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_hash_is_refused_and_removed(either: FakeHub, dense: Path, name: str) -> None:
    either.add(REPO, files_of(dense))
    either.wrong_hash.add(name)
    with pytest.raises(CorruptFileError, match=rf"{name} from 127.0.0.1:.* has hash [0-9a-f]+ instead of") as caught:
        resolve(REPO, progress=quiet)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelNotFoundError, match=r"only in part|is not in the cache"):
        resolve(REPO, offline=True)
    either.wrong_hash.clear()
    assert load_weights(meta_model(), resolve(REPO, progress=quiet).path).tensors == 24


def test_offline_miss(either: FakeHub) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"someone/tiny@\w+ is not in the cache .*qwen3 pull someone/tiny"
    ) as e:
        resolve(REPO, offline=True)
    assert e.value.exit_code == 3
    assert either.requests == []


def test_revision_pin_and_refresh(either: FakeHub, dense: Path) -> None:
    old = files_of(dense) | {"tokenizer.json": b"{}"}
    either.add(REPO, old, "main", "master", "v1")
    first = resolve(REPO, progress=quiet)
    either.add(REPO, old | {"generation_config.json": b'{"temperature": 0.7}'})
    assert resolve(REPO, progress=quiet).path == first.path  # the cache answers, and says what it has
    second = resolve(REPO, progress=quiet, refresh=True)
    assert second.path != first.path
    assert (second.path / "generation_config.json").read_bytes() == b'{"temperature": 0.7}'
    assert either.fetched().count("model.safetensors") == 1  # the same blob serves both
    pinned = resolve(f"{REPO}@v1", progress=quiet)
    assert (pinned.path, pinned.revision) == (first.path, "v1")
    assert resolve(REPO, offline=True).path == second.path
    with pytest.raises(ModelNotFoundError, match="v9"):
        resolve(f"{REPO}@v9", progress=quiet)
    with pytest.raises(UsageError, match="not a revision"):
        resolve(f"{REPO}@../../x", progress=quiet)


def test_complete_weights_survive_a_dead_hub(either: FakeHub, dense: Path) -> None:
    either.add(REPO, files_of(dense))  # no tokenizer: each online look asks whether there is one by now
    first = resolve(REPO, progress=quiet)
    either.status["api"] = 503
    assert resolve(REPO, progress=quiet).path == first.path
    with pytest.raises(RemoteError, match="503"):
        resolve(REPO, progress=quiet, refresh=True)


def test_unreachable(either: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("HF_ENDPOINT", dead)
    monkeypatch.setenv("QWEN3_HUB_ENDPOINT", dead)
    with pytest.raises(RemoteError, match=rf"someone/tiny: {dead} cannot be reached") as caught:
        resolve(REPO)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "error"), [(500, RemoteError), (503, RemoteError), (429, RemoteError)])
def test_failing_api(either: FakeHub, dense: Path, status: int, error: type[Qwen3Error]) -> None:
    either.add(REPO, files_of(dense))
    either.status["api"] = status
    with pytest.raises(error, match=rf"someone/tiny.*{status}"):
        resolve(REPO)


@pytest.mark.parametrize(("status", "error"), [(404, ModelNotFoundError), (403, RemoteError), (401, RemoteError)])
def test_failing_file(either: FakeHub, dense: Path, status: int, error: type[Qwen3Error]) -> None:
    either.add(REPO, files_of(dense))
    either.status["model.safetensors"] = status
    with pytest.raises(error, match=r"someone/tiny model.safetensors") as caught:
        resolve(REPO, progress=quiet)
    assert "\n" not in str(caught.value)


def test_file_that_keeps_failing(either: FakeHub, dense: Path, monkeypatch: pytest.MonkeyPatch, sharded: Path) -> None:
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: self.is_set())
    either.add(REPO, files_of(sharded))
    either.status["model-00002-of-00005.safetensors"] = 503
    with pytest.raises(RemoteError, match=r"model-00002-of-00005.safetensors: 127.* failed 5 times \(HTTP 503"):
        resolve(REPO, progress=quiet)


def test_no_such_repository(either: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match="someone/absent"):
        resolve("someone/absent")


def test_private_and_gated(hub: FakeHub, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("someone/private", files_of(dense))
    hub.add("someone/gated", files_of(dense))
    hub.private.add("someone/private")
    hub.gated.add("someone/gated")
    with pytest.raises(ModelNotFoundError, match="set HF_TOKEN if it is private"):
        resolve("someone/private")
    with pytest.raises(RemoteError, match=r"someone/gated is gated: accept its terms at .*HF_TOKEN"):
        resolve("someone/gated")
    hub.status["api"] = 401
    with pytest.raises(RemoteError, match="HF_TOKEN"):
        resolve("someone/private")
    hub.status.clear()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert resolve("someone/private", progress=quiet).source == "download"
    assert {entry[3] for entry in hub.requests if entry[1] == "model.safetensors"} == {"Bearer secret"}


def test_redirect_takes_the_range_along_but_not_the_token(
    hub: FakeHub, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, files_of(dense))
    hub.private.add(REPO)
    hub.cdn = hub.endpoint.replace("127.0.0.1", "localhost")
    hub.cut_once["model.safetensors"] = 9000
    monkeypatch.setenv("HF_TOKEN", hub.token)
    found = resolve(REPO, progress=quiet)
    assert (found.path / "model.safetensors").read_bytes() == (dense / "model.safetensors").read_bytes()
    assert [entry[2:] for entry in hub.requests if entry[1] == "cdn model.safetensors"] == [
        (None, None),
        ("bytes=9000-", None),
    ]
    assert {entry[3] for entry in hub.requests if entry[1] == "model.safetensors"} == {"Bearer secret"}


def test_two_processes_download_the_same_file_once(hub: FakeHub, dense: Path) -> None:
    hub.add(REPO, files_of(dense))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve(REPO, progress=quiet).path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert hub.fetched().count("model.safetensors") == 1
    assert not list((found[0].parents[1] / "blobs").glob("*" + PARTIAL))


def test_not_for_us_is_said_before_the_weights(either: FakeHub, dense: Path) -> None:
    files = files_of(dense)
    llama = files | {"config.json": b'{"model_type": "llama"}'}
    either.add("someone/llama", llama)
    with pytest.raises(ConfigError, match="llama"):
        resolve("someone/llama")
    quantized = files["config.json"].rstrip(b"}\n") + b', "quantization_config": {"quant_method": "hqq"}}'
    either.add("someone/hqq", files | {"config.json": quantized})
    with pytest.raises(ConfigError, match=r"'hqq'; what is read"):
        resolve("someone/hqq")
    either.add("someone/pickle", {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    with pytest.raises(UnsafeFileError, match="never opened"):
        resolve("someone/pickle")
    either.add("someone/empty", {"README.md": b"x"})
    with pytest.raises(ModelNotFoundError, match="no safetensors"):
        resolve("someone/empty")
    either.add("someone/some-gguf-files", {"config.json": b"{}", "a.gguf": b"GGUF"})
    assert resolve("someone/some-gguf-files", progress=quiet).path.name == "a.gguf"
    assert not [name for name in either.fetched() if name != "config.json" and name.endswith((".safetensors", ".bin"))]


def test_cache_that_cannot_be_written(
    either: FakeHub, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    monkeypatch.setenv("QWEN3_MODELSCOPE_CACHE", str(tmp_path / "file" / "hub"))
    either.add(REPO, files_of(dense))
    with pytest.raises(Qwen3Error, match=rf"{tmp_path / 'file'}.*the model cache cannot be written") as caught:
        resolve(REPO, progress=quiet)
    assert caught.value.exit_code == 1


def test_disk_too_small(either: FakeHub, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    either.add(REPO, files_of(dense))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(Qwen3Error, match=r"someone/tiny needs [\d,]+ more bytes .* that disk has 1,000 free"):
        resolve(REPO, progress=quiet)
    assert "model.safetensors" not in either.fetched()


def test_tag_goes_to_the_official_repository(hub: FakeHub, dense: Path) -> None:
    hub.add("Qwen/Qwen3-0.6B", files_of(dense))
    found = resolve("qwen3:0.6b", progress=quiet)
    assert (found.name, found.repo) == ("qwen3:0.6b", "Qwen/Qwen3-0.6B")
    assert resolve("qwen/qwen3-0.6b", progress=quiet).path == found.path
    with pytest.raises(ModelNotFoundError, match=r"perhaps Qwen/Qwen3-0.6B-GGUF does$"):
        resolve("Qwen/Qwen3-0.6B:Q4_K_M")


def test_cache_is_hugging_faces_own(hub: FakeHub, dense: Path, cache: Path) -> None:
    """huggingface_hub finds what we downloaded, and we what it downloaded, without a second copy."""
    import huggingface_hub

    commit = hub.add(REPO, files_of(dense))
    found = resolve(REPO, progress=quiet)
    theirs = huggingface_hub.hf_hub_download(REPO, "model.safetensors", cache_dir=cache, local_files_only=True)
    assert Path(theirs) == found.path / "model.safetensors"

    other = hub.add("someone/other", files_of(dense) | {"README.md": b"other"})
    for name in ("config.json", "model.safetensors"):
        huggingface_hub.hf_hub_download("someone/other", name, cache_dir=cache, endpoint=hub.endpoint)
    hub.requests.clear()
    assert resolve("someone/other", offline=True).commit == other != commit
    assert hub.requests == []


def test_default_progress_is_lines_without_a_terminal(
    hub: FakeHub, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, files_of(dense))
    resolve(REPO)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert "from Hugging Face" in err
    assert "(100%)" in err
    StderrProgress()("half", 1, 2)
    assert capsys.readouterr().err == "half\n"
