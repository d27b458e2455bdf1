"""Outputs are complete or absent, and nothing that is not ours is replaced."""

import json

import numpy as np
import pytest

from cli import tree
from edgemoe import output
from edgemoe.errors import BadInput
from edgemoe.manifest import manifest, sha256


class Stop(Exception):
    pass


def test_a_directory_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "b"
    with output.directory(target) as work:
        (work / "x").write_text("1")
        assert not target.exists() and work.parent.parent == target.parent
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/x": b"1"}


def test_a_directory_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(Stop), output.directory(tmp_path / "a" / "b") as work:
        (work / "x").write_text("1")
        raise Stop
    assert tree(tmp_path) == {}


def test_a_directory_of_ours_is_replaced_as_a_whole(tmp_path):
    for text in ("old", "new"):
        with output.directory(tmp_path / "out") as work:
            (work / text).write_text(text)
            output.write_json(work / output.MANIFEST, {})
    assert set(tree(tmp_path)) == {"out", "out/new", "out/manifest.json"}
    with pytest.raises(Stop), output.directory(tmp_path / "out"):
        raise Stop
    assert set(tree(tmp_path)) == {"out", "out/new", "out/manifest.json"}


def test_what_is_not_ours_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match="did not write"), output.directory(tmp_path):
        pass
    with pytest.raises(BadInput, match="found a file"):
        output.check_directory(tmp_path / "thesis.tex")
    with pytest.raises(BadInput, match="found a directory"), output.file(tmp_path):
        pass
    assert tree(tmp_path) == {"thesis.tex": b"mine"}


def test_checks_leave_nothing(tmp_path):
    output.check_directory(tmp_path / "a" / "b")
    output.check_file(tmp_path / "c" / "d.json")
    assert tree(tmp_path) == {}


def test_a_file_is_replaced_at_the_end_and_keeps_its_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Stop), output.file(tmp_path / "link") as temporary:
        temporary.write_text("half")
        raise Stop
    assert (tmp_path / "real").read_text() == "old"
    with output.file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "real").read_text() == "new" and (tmp_path / "link").is_symlink()


def test_a_device_is_written_to_and_not_replaced(tmp_path, capfd):
    output.write_json("/dev/stdout", {"a": np.float64(1.5), "b": np.arange(2), "c": float("inf")})
    assert json.loads(capfd.readouterr().out) == {"a": 1.5, "b": [0, 1], "c": None}
    output.write_json("/dev/null", {})
    assert not output.Path("/dev/null").is_file()


def test_manifest_has_hashes_and_versions(tmp_path):
    (tmp_path / "m").write_bytes(b"abc")
    found = manifest("build", {"lanes": 8}, {"model": tmp_path / "m"}, seed=3)
    assert found["inputs"]["model"] == sha256(tmp_path / "m")
    assert found["inputs"]["model"].startswith("ba7816bf") and found["seed"] == 3
    assert {"python", "numpy", "amaranth"} <= set(found["tools"])
