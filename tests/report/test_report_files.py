"""Files appear whole or not at all, and nothing is replaced unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsconf.errors import InputError
from dsconf.report.files import check_writable, refuse_other, write_together, write_whole


def test_a_file_is_written_with_its_folders_and_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run" / "ds_config.json"
    check_writable(path.parent)
    old = os.umask(0o027)
    try:
        write_whole(path, "{}\n")
    finally:
        os.umask(old)
    assert path.read_text() == "{}\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"ds_config\.json: No space left on device"):
        write_whole(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["ds_config.json"]
    assert path.read_text() == "old"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "ds_config.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "run")
    with pytest.raises(InputError, match="cannot write"):
        write_whole(tmp_path / "file" / "run" / "ds_config.json", "{}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission to write"):
        check_writable(tmp_path / "run")


def test_an_existing_file_is_refused_unless_forced_or_equal(tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    refuse_other(path, "other", force=False)
    path.write_text("mine")
    refuse_other(path, "other", force=True)
    refuse_other(path, "mine", force=False)
    with pytest.raises(InputError, match="already exists; use --force to replace it, or name another folder"):
        refuse_other(path, "other", force=False)


def test_a_folder_in_the_files_place_is_refused_even_when_forced(tmp_path: Path) -> None:
    (tmp_path / "ds_config.json").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        refuse_other(tmp_path / "ds_config.json", "{}", force=True)


def test_several_files_are_written_together_and_scripts_may_be_run(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_together({tmp_path / "run" / "ds_config.json": "{}\n", tmp_path / "run" / "launch.sh": "#!/bin/sh\n"})
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    assert modes == {"ds_config.json": 0o640, "launch.sh": 0o750}


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_when_one_file_fails_all_are_as_before(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[0].write_text("old a")
    paths[2].write_text("old c")
    real = os.replace

    def sometimes(source: Path, target: Path) -> None:
        if Path(target) == paths[failing]:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(InputError, match=rf"{paths[failing].name}: No space left on device"):
        write_together(dict.fromkeys(paths, "new"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old a", "c": "old c"}


def test_a_disk_that_fills_up_is_noticed_before_any_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".second"):
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="second: No space left on device"):
        write_together({tmp_path / "first": "1", tmp_path / "second": "2"})
    assert list(tmp_path.iterdir()) == []
