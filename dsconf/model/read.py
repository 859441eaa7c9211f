"""Reads what is trained: a size, a config.json, a catalogue name or a config at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsconf.errors import InputError, nearest
from dsconf.model.families import FAMILIES
from dsconf.model.hf_config import HfConfig
from dsconf.model.spec import Model


def read_model(
    params: str | int | None = None,
    model: str | Path | Mapping[str, Any] | None = None,
    lora_rank: int | None = None,
) -> Model:
    """Read the model that a person means.

    Args:
        params: number of parameters (``70B``, ``1.5e9``): a llama-like shape of that size is chosen.
        model: path of a config.json or of the folder it lies in, a catalogue name (in any case, with or without
            the organisation), or the config itself.
        lora_rank: rank of LoRA adapters on every linear layer of the decoder; the rest is frozen.

    Raises:
        InputError: not exactly one of ``params`` and ``model``; an unreadable file; a config that is not a
            supported decoder or whose sizes do not go together.
    """
    if (params is None) == (model is None):
        raise InputError("give either --params SIZE or --model NAME_OR_PATH" + (", not both" if params else ""))
    shape = _of_size(params) if params is not None else _named(model)
    if lora_rank is None:
        return shape
    from dsconf.model.lora import with_lora

    return with_lora(shape, lora_rank)


def read_hf_config(config: Mapping[str, Any], name: str) -> Model:
    """Read the model that a Hugging Face config describes; of a multimodal one, its text part.

    Args:
        config: the object of a config.json.
        name: what to call it in messages and in ``Model.name``.

    Raises:
        InputError: an unknown family, or a key that is missing or impossible.
    """
    family = config.get("model_type")
    if not isinstance(family, str):
        raise InputError(f"{name}: has no model_type, which says the family; is it a Hugging Face config.json?")
    if family not in FAMILIES:
        text = config.get("text_config")
        if isinstance(text, Mapping) and text.get("model_type") in FAMILIES:
            return read_hf_config(text, f"{name} (text part)")
        raise InputError(
            f"{name}: model_type {family!r} is not a family dsconf reads{nearest(family, tuple(FAMILIES))} "
            f"(it reads {', '.join(sorted(FAMILIES))}); --params SIZE gives an estimate for a llama-like shape "
            "of that size"
        )
    read, defaults, aliases = FAMILIES[family]
    keys = HfConfig(config, name, defaults, aliases)
    keys.check_layers()
    return read(keys)


def _of_size(params: str | int) -> Model:
    from dsconf.model.from_params import shape_of_size
    from dsconf.units import format_count, parse_count

    if isinstance(params, bool) or not isinstance(params, (str, int, float)):
        raise InputError(f"--params {params!r} is not a count; write it like 70B, 125M or 1.5e9")
    name = format_count(params) if isinstance(params, (int, float)) and params > 0 else str(params).strip()
    return read_hf_config(shape_of_size(parse_count(str(params))), name)


def _named(model: object) -> Model:
    to_dict = getattr(model, "to_dict", None)  # transformers' config objects
    config = to_dict() if callable(to_dict) else model
    if isinstance(config, Mapping):
        return read_hf_config(config, str(config.get("_name_or_path") or "config"))
    if not isinstance(model, (str, Path)):
        raise InputError(f"--model is of type {type(model).__name__}, not a name, a path or a config")
    path = Path(model)
    for file in (path, path / "config.json"):
        if _holds(file.is_file):
            return read_hf_config(_load(file), str(model))
    return _from_catalogue(str(model), path)


def _holds(test: Callable[[], bool]) -> bool:
    """Ask the file system; a name that is too long for it means no, not a failure."""
    try:
        return test()
    except (OSError, ValueError):
        return False


def _from_catalogue(name: str, path: Path) -> Model:
    from dsconf.model.catalogue import find, names

    entry = find(name)
    if entry is not None:
        return read_hf_config(entry.config, name)
    if _holds(path.is_dir):
        raise InputError(f"{name}: the folder has no config.json")
    if path.suffix == ".json" or name.startswith((".", "/", "~")):
        raise InputError(f"{name}: no such file")
    raise InputError(
        f"--model {name!r} is neither a file nor a model of the catalogue{nearest(name, names())}; "
        "give a Hugging Face config.json, a name from the catalogue, or --params SIZE"
    )


def _load(path: Path) -> Mapping[str, Any]:
    import json

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not JSON: the file is not text") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(
            f"{path}: holds a JSON {type(config).__name__}, not an object; give a Hugging Face config.json"
        )
    return config
