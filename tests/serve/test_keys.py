"""The file of keys, and whose a key is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qwen3.errors import UsageError
from qwen3.serve.keys import Keys, add_key, new_key


def keys_of(tmp_path: Path, text: str, shared_prefix: bool = False) -> Keys:
    path = tmp_path / "keys.txt"
    path.touch(0o600)
    path.write_text(text)
    return Keys(path, shared_prefix)


def test_lines(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"hashed-secret").hexdigest()
    keys = keys_of(
        tmp_path,
        f"\ufeff# who may\n\nalice:alice-secret:admin,priority=-2,tenant=team,max=3\n  bob:sha256={digest}:priority=5\n"
        "carol:carol-secret:\n",
    )
    assert len(keys) == 3
    alice, bob, carol = (keys.find(key) for key in ("alice.alice-secret", "hashed-secret", "carol-secret"))
    assert alice and bob and carol  # noqa: PT018
    assert (alice.id, alice.tenant, alice.priority, alice.admin, alice.limit) == ("alice", "team", -2, True, 3)
    assert (bob.id, bob.tenant, bob.priority, bob.admin, bob.limit) == ("bob", "bob", 5, False, None)
    assert carol.tenant == "carol"
    assert keys.find("bob.hashed-secret") == bob
    assert keys.warnings == []


@pytest.mark.parametrize(
    "presented",
    ["", ".", "alice", "alice.", "alice.wrong-secret", "bob.alice-secret", "nobody.alice-secret", ".alice-secret",
     "alice-secret ", "alice.alice-secret.", "ALICE.alice-secret", "alice:alice-secret", "a" * 5000, "alice\0.x",
     "\ud800"],
)  # fmt: skip
def test_what_is_no_key(tmp_path: Path, presented: str) -> None:
    assert keys_of(tmp_path, "alice:alice-secret\nbob:bob-secret\n").find(presented) is None


def test_a_secret_may_hold_dots(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, "alice:bob.se.cret\nbob:other-secret\n")
    for presented in ("bob.se.cret", "alice.bob.se.cret"):
        found = keys.find(presented)
        assert found is not None
        assert found.id == "alice"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice", "id:secret"),
        ("al ice:secret-secret", "id:secret"),
        (":secret-secret", "id:secret"),
        ("a" * 65 + ":secret-secret", "id:secret"),
        ("alice:short", "shorter than 8"),
        ("alice:", "shorter than 8"),
        ("alice:sha256=abc", "64 hexadecimal"),
        ("alice:secret-secret:root", "'root' is no option"),
        ("alice:secret-secret:priority=high", "priority"),
        ("alice:secret-secret:max=0", "max"),
        ("alice:secret-secret\nalice:other-secret", "twice"),
        ("alice:secret-secret\nbob:secret-secret", "same secret"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        keys_of(tmp_path, line)
    assert "line " in str(caught.value)
    assert "secret-secret" not in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    for name, data, says in (("empty", b"# nothing\n", "0 keys"), ("binary", b"\xff\xfe\x00", "not a text file")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=says):
            Keys(tmp_path / name)
    with pytest.raises(UsageError, match="No such file"):
        Keys(tmp_path / "missing")
    with pytest.raises(UsageError, match="directory"):
        Keys(tmp_path)


def test_a_file_that_others_can_read(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, "alice:alice-secret\n")
    keys.path.chmod(0o640)
    keys.reload()
    assert "chmod 600" in keys.warnings[0]


def test_reload(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, "alice:alice-secret\n")
    keys.path.write_text("bob:bob-secret\n")
    keys.reload()
    assert keys.find("alice-secret") is None
    assert keys.find("bob-secret")
    keys.path.write_text("broken\n")
    with pytest.raises(UsageError, match="line 1"):
        keys.reload()
    assert keys.find("bob-secret")  # as it was


def test_shared_prefix_is_one_tenant(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, "alice:alice-secret\nbob:bob-secret:tenant=x\n", shared_prefix=True)
    assert {keys.find(key).tenant for key in ("alice-secret", "bob-secret")} == {""}  # type: ignore[union-attr]


def test_new_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    key, line = new_key("alice")
    assert key.split(".")[1] not in line
    add_key(path, line)
    assert path.stat().st_mode & 0o777 == 0o600
    other, line = new_key("bob")
    add_key(path, line)
    keys = Keys(path)
    assert [keys.find(k).id for k in (key, other)] == ["alice", "bob"]  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="a key of that name"):
        add_key(path, line)
    with pytest.raises(UsageError, match="letters, digits"):
        new_key("al:ice")


def test_a_line_is_added_behind_one_that_has_no_end(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, "alice:alice-secret")
    key, line = new_key("bob")
    add_key(keys.path, line)
    keys.reload()
    assert keys.find("alice-secret")
    assert keys.find(key)
