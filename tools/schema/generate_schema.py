"""Writes schemas/ds_config-<version>.schema.json from the installed DeepSpeed and the tables beside this file.

    DS_ACCELERATOR=cpu python -m tools.schema.generate_schema [--check]

``--check`` writes nothing and fails when the file is not what would be written; a DeepSpeed that is newer than all in
RELEASES has none, and fails when it does not read what the newest of them does. Names, defaults and ranges come from
DeepSpeed: from its pydantic models, and from watching its parser read (reads.py). The types of hand-read
keys and all descriptions come from the tables; a key that stands in only one of the two ends this with an error.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from difflib import unified_diff
from itertools import islice
from pathlib import Path
from typing import Any

from dsconf.config.names import RELEASES
from tools.schema.blocks import BLOCKS, TOP
from tools.schema.key_types import Key
from tools.schema.models import model_block, models, variants
from tools.schema.old import OLD_BLOCK_WORDS, OLD_BLOCKS, OLD_TOP
from tools.schema.parts import LINKS, part_reads
from tools.schema.probes import narrow
from tools.schema.reads import UNSET, Reads, signature_reads, takes, watched_reads
from tools.schema.words import BLOCK_WORDS

ROOT = Path(__file__).resolve().parents[2]

Tables = dict[str, dict[str, Key]]
Path_ = tuple[str, ...]
OPEN = ("amp", "curriculum_learning", "optimizer_params", "scheduler_params")
"""Blocks whose other keys DeepSpeed passes on to whoever they are for."""
NO_BLOCK = (
    "optimizer",
    "scheduler",
    "optimizer_params",
    "scheduler_params",
    "weight_quantization",
    "checkpoint_writer",
)
"""Blocks that do not act with their defaults when they are left out."""
LINE = 120


def _inner(kind: dict[str, Any]) -> str:
    return str(kind.get("$ref", "")).rpartition("/")[2]


def _held(kind: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the block that a key of ``kind`` is or holds many of, and the path to it from the key."""
    for part in (kind.get("items"), kind.get("additionalProperties")):
        if isinstance(part, dict) and "$ref" in part:
            return _inner(part), ("*",)
    return _inner(kind), ()


def _paths(tables: Tables) -> dict[str, Path_]:
    """Find where in a config each block of ``tables`` stands; ``*`` is any name or number."""
    above: dict[str, tuple[str, Path_]] = {}
    for name, block in tables.items():
        for word, key in block.items():
            held, within = _held(key.kind)
            above[held] = (name, (word, *within))
    fixed = {block: path for path, block in LINKS.items()}

    def path(name: str) -> Path_:
        return fixed[name] if name in fixed else (*path(above[name][0]), *above[name][1]) if name in above else (name,)

    return {name: path(name) for name in tables}


def _is_read(key: Key, package: Path) -> bool:
    """Say whether the source file that ``key`` names still holds the text that reads it."""
    if key.seen is None or key.seen == ("", ""):
        return key.seen is not None
    file = package / key.seen[0]
    return file.exists() and key.seen[1] in file.read_text(encoding="utf-8")


def _left_out(kind: dict[str, Any]) -> dict[str, Any] | None:
    """Return what leaving an object out means: an empty one, or nothing where an empty one is refused."""
    return None if "required" in kind else {}


def _or_null(kind: dict[str, Any]) -> dict[str, Any]:
    """Allow null beside ``kind``: where the parser itself puts None for a key left out, null is the same."""
    kinds = kind.get("type", "null")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return kind if "null" in kinds else {**kind, "type": [*kinds, "null"]}


def _plain_property(key: Key, noted: Any) -> dict[str, Any]:
    """Describe one hand-read key; ``noted`` is the default given with its look-up."""
    name, default = _inner(key.kind), noted
    if name:
        default = None if name in NO_BLOCK else {}
    elif default is UNSET:
        default = _left_out(key.kind) if key.default is UNSET and key.kind.get("type") == "object" else key.default
    if default is UNSET:
        raise KeyError(f"{key.words!r}: DeepSpeed gives no default with its look-up; give one in the tables")
    kind = _or_null(key.kind) if noted is None else key.kind
    return {**kind, "default": list(default) if isinstance(default, tuple) else default, "description": key.words}


def _plain_properties(keys: dict[str, Key], noted: dict[str, Any], package: Path) -> dict[str, Any]:
    """Describe the keys of one hand-read block that this DeepSpeed reads."""
    return {
        name: _plain_property(key, noted.get(name, UNSET))
        for name, key in keys.items()
        if name in noted or _is_read(key, package)
    }


def _plain_block(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Describe a block in which DeepSpeed ignores unknown keys; one that begins with an underscore is a comment."""
    block: dict[str, Any] = {"type": "object", "properties": properties, "patternProperties": {"^_": {}}}
    return {**block, "additionalProperties": name in OPEN}


def _refused() -> set[str]:
    """List the top-level keys that this DeepSpeed looks up only to refuse them."""
    from deepspeed.runtime import config

    return set(getattr(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", ()))


def _tables(newest: bool, taken: set[str]) -> tuple[dict[str, Key], Tables, dict[str, str]]:
    """Return the hand-read top-level keys, blocks and words for blocks; ``taken`` are the names of models."""
    if newest:
        return TOP, BLOCKS, BLOCK_WORDS
    old = {name: block for name, block in OLD_BLOCKS.items() if name not in taken}
    return {**TOP, **OLD_TOP}, {**BLOCKS, **old}, {**BLOCK_WORDS, **OLD_BLOCK_WORDS}


def _differences(where: str, table: set[str], read: set[str]) -> list[str]:
    lines = [f"{where}: DeepSpeed reads {key!r}, which no table describes" for key in sorted(read - table)]
    return lines + [f"{where}: {key!r} is described, but DeepSpeed does not read it" for key in sorted(table - read)]


def _audit(top: dict[str, Key], plain: Tables, paths: dict[str, Any], reads: Reads, defs: dict[str, Any]) -> list[str]:
    """List the keys that stand only in the tables, or only in what DeepSpeed reads."""
    not_top_level = {*top, *(path[0] for path in paths.values() if len(path) == 1), "bfloat16"} - {"$schema"}
    lines = _differences("top level", set(), set(reads[()]) - not_top_level - _refused())
    for name in plain:
        described = set(plain[name])
        lines += _differences(".".join(paths[name]), described, described | set(reads.get(paths[name], {})))
    return lines + [f"{name}: no key of it is read" for name, block in defs.items() if block.get("properties") == {}]


def _gone(top: dict[str, Key], plain: Tables, properties: dict[str, Any], defs: dict[str, Any]) -> list[str]:
    """List the keys of today's tables that the newest DeepSpeed does not read."""
    lines = _differences("top level", set(top), set(top) & set(properties))
    for name, keys in plain.items():
        lines += _differences(name, set(keys), set(defs[name]["properties"]))
    return lines


def installed() -> str:
    """Return the release of DeepSpeed that is installed."""
    import deepspeed

    return str(deepspeed.__version__).partition("+")[0].strip()


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)[:3]]


def build() -> dict[str, Any]:
    """Build the whole schema.

    Raises:
        KeyError: DeepSpeed and the tables do not name the same keys.
    """
    import deepspeed

    version, package = installed(), Path(deepspeed.__file__).parent
    newest = _numbers(version) >= _numbers(RELEASES[-1])
    pydantic = models()
    top, plain, words = _tables(newest, set(pydantic))
    paths = {**_paths(plain), **{name: path for name, (_, path) in pydantic.items()}}
    reads: Reads = watched_reads({(), *paths.values()})
    for path, noted in (*signature_reads().items(), *part_reads().items()):
        reads[path] = {**reads.get(path, {}), **noted}
    blocks = {model.__name__: name for name, (model, _) in pydantic.items()}
    inner = {
        name: model_block(name, model, blocks, ".".join(path) + ".", newest) for name, (model, path) in pydantic.items()
    }
    for name, keys in plain.items():
        inner[name] = _plain_block(name, _plain_properties(keys, reads.get(paths[name], {}), package))
    properties = _plain_properties(top, reads[()], package)
    missing = _gone(top, plain, properties, inner) if newest else []
    inner = {name: block for name, block in inner.items() if block["properties"] and paths[name][0] in reads[()]}
    problems = missing + _audit(top, {name: plain[name] for name in plain if name in inner}, paths, reads, inner)
    if problems:
        raise KeyError("; ".join(problems))
    for (model, key), name in LINKS.items():
        if name in inner:
            declared = inner[model]["properties"][key]
            inner[model]["properties"][key] = {"$ref": f"#/$defs/{name}"} | {
                k: declared[k] for k in declared if k != "type"
            }
    narrow(inner, paths)
    for name in (name for name in inner if len(paths[name]) == 1):
        default = None if name in NO_BLOCK else _left_out(inner[name])
        properties[name] = {"$ref": f"#/$defs/{name}", "default": default, "description": words[name]}
    properties["bfloat16"] = _old_bf16()
    _examples(inner)
    used = str(inner)
    scalars = {name: part for name, part in variants().items() if f"#/$defs/{name}'" in used}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://dsconf.invalid/schemas/ds_config-{version}.schema.json",
        "title": f"ds_config of DeepSpeed {version}",
        "type": "object",
        "properties": properties,
        "patternProperties": {"^_": {}},
        "additionalProperties": False,
        "$defs": {**scalars, **inner},
    }


def _old_bf16() -> dict[str, Any]:
    """Describe the other name of bf16, without saying what it may hold instead of an object."""
    kinds = ["object", "null"] if takes({"bfloat16": None}) else "object"
    about = {"default": {}, "deprecated": True, "description": "Old name of bf16."}
    return {"$ref": "#/$defs/bf16", "type": kinds, **about}


def _examples(defs: dict[str, Any]) -> None:
    """Put the optimizers and schedules that this DeepSpeed brings into ``defs`` as examples."""
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES

    defs["optimizer"]["properties"]["type"]["examples"] = sorted(DEEPSPEED_OPTIMIZERS)
    defs["scheduler"]["properties"]["type"]["examples"] = sorted(VALID_LR_SCHEDULES)


def _compact(text: str) -> str:
    """Put lists and objects that hold no other one on one line, where it is short enough to read."""

    def join(match: re.Match[str]) -> str:
        line = re.sub(r"\s*\n\s*", " ", match[0])
        line = re.sub(r"([\[{]) ", r"\1", re.sub(r" ([\]}])", r"\1", line))
        return line if len(line) < LINE else match[0]

    for pattern in (r"\[[^\[\]{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(pattern, join, text)
    return text


def _text(schema: dict[str, Any]) -> str:
    """Return the content of a schema's file."""
    return _compact(json.dumps(schema, indent=2, ensure_ascii=False)) + "\n"


def _differing(there: str, text: str) -> str:
    """Return the first lines in which a shipped file and what DeepSpeed reads differ."""
    lines = unified_diff(there.splitlines(), text.splitlines(), "shipped", "DeepSpeed", n=0, lineterm="")
    return "\n".join(islice(lines, 40))


def _compare(target: Path, text: str) -> int:
    """Say how the file differs from ``text``, and return 1 if it does."""
    there = target.read_text(encoding="utf-8") if target.exists() else ""
    if there == text:
        print(f"{target.name} is what DeepSpeed reads")
        return 0
    print(f"{target.name} is stale; run tools.schema.generate_schema without --check. The first differences:")
    print(_differing(there, text))
    return 1


def _compare_newer(version: str) -> int:
    """Say how ``version``, newer than all in RELEASES, reads its config differently from the newest; return 1 if it
    does."""
    known = RELEASES[-1]
    shipped = json.loads((ROOT / "schemas" / f"ds_config-{known}.schema.json").read_text(encoding="utf-8"))
    try:
        schema = build() | {name: shipped[name] for name in ("$id", "title")}
    except KeyError as error:  # a key that no table describes
        found = str(error.args[0])
    else:
        found = _differing(_text(shipped), _text(schema))
    if not found:
        print(f"DeepSpeed {version} is newer than all in RELEASES, and reads what {known} does")
        return 0
    print(f"DeepSpeed {version} reads its config otherwise than {known}, the newest in RELEASES:")
    print("pin it in setup.cfg, add it to dsconf/config/names.py, describe what is new in the tables here and write")
    print("its schema. What differs:")
    print(found)
    return 1


def main() -> int:
    """Write the schema, or compare it with ``--check``."""
    logging.disable(logging.CRITICAL)  # DeepSpeed's words about the probes
    version, checked = installed(), "--check" in sys.argv[1:]
    if checked and _numbers(version) > _numbers(RELEASES[-1]):
        return _compare_newer(version)
    schema = build()
    target = ROOT / "schemas" / schema["$id"].rpartition("/")[2]
    if checked:
        return _compare(target, _text(schema))
    target.write_text(_text(schema), encoding="utf-8")
    print(f"wrote {target.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
