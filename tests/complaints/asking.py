"""Types a command as a user would, in an empty folder with the files that are named."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from click.testing import CliRunner

from dsconf.cli import group

GIB = 2**30
MIB = 2**20
ADAMW = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}
BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True}}
CPU = {"device": "cpu"}


class Answer(NamedTuple):
    """What came back."""

    code: int
    text: str
    files: dict[str, str]


def zero(stage: int, *blocks: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A ds_config with micro-batch 1 and DeepSpeed's defaults besides ``keys`` of its ZeRO block and ``blocks``."""
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage, **keys}}
    for block in blocks:
        config |= block
    return config


def ask(line: str, config: dict[str, Any] | None = None, **files: dict[str, Any]) -> Answer:
    """The answer to ``line``; ``config`` is the ds_config.json in the folder, ``files`` more JSON by their stems."""
    program, *words = shlex.split(line)
    assert program == "dsconf"
    with _empty_folder():
        for name, content in (files if config is None else files | {"ds_config": config}).items():
            Path(f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        result = CliRunner().invoke(group, words, prog_name="dsconf")
        written = {str(path): path.read_text("utf-8") for path in Path().rglob("*") if path.is_file()}
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return Answer(result.exit_code, result.stdout, written)


@contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def figures(line: str, config: dict[str, Any] | None = None, **files: dict[str, Any]) -> dict[str, Any]:
    """The document that ``line`` prints with ``--format json``."""
    answer = ask(f"{line} --format json", config, **files)
    assert answer.code in (0, 1), answer.text
    document: dict[str, Any] = json.loads(answer.text)
    return document


def findings(line: str, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The findings of ``dsconf validate`` on ``config`` by code; the last one where a code is reported twice."""
    (file,) = figures(line, config)["files"]
    return {found["code"]: found for found in file["findings"]}
