"""Reads keys of a Hugging Face config.json and says in one line what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsconf.errors import InputError

LARGEST_COUNT = 10**9
"""A thousand times the largest size in any published config; keeps nonsense out of the arithmetic."""

MOST_LAYERS = 10_000
"""Eighty times the deepest published config: layers are walked one by one."""


class HfConfig:
    """The keys of one config, with the family's defaults behind them.

    Keys are read by the family's common name (``hidden_size``); ``aliases`` maps other spellings the family accepts
    (``n_embd``) to it, as the ``attribute_map`` of its Config class does. A key that is null is not absent: the
    default does not replace it.
    """

    def __init__(
        self, values: Mapping[str, Any], name: str, defaults: Mapping[str, Any], aliases: Mapping[str, str]
    ) -> None:
        self.values = values
        self.name = name
        self._defaults = defaults
        self._spelling: dict[str, str] = {key: key for key in values if key not in aliases}
        for alias, key in aliases.items():
            if alias in values:
                self._spelling[key] = self._agreed(key, alias)

    def _agreed(self, key: str, alias: str) -> str:
        other = self._spelling.get(key)
        if other is not None and self.values[other] != self.values[alias]:
            raise self.error(
                f"{alias} says {self.values[alias]!r} and {other} says {self.values[other]!r}; keep one of them"
            )
        return alias

    def error(self, problem: str) -> InputError:
        """Make an InputError that names this config."""
        return InputError(f"{self.name}: {problem}")

    def spelled(self, key: str) -> str:
        """Return ``key`` as this config writes it."""
        return self._spelling.get(key, key)

    def get(self, key: str) -> Any:
        """Return the value under ``key`` in any spelling, else the family's default, else None."""
        return self.values[self._spelling[key]] if key in self._spelling else self._defaults.get(key)

    def require(self, *keys: str) -> None:
        """Raise InputError where one of ``keys`` is absent: sizes that no default should stand in for."""
        for key in keys:
            if key not in self._spelling:
                raise self.error(f"has no {key}; every config.json gives it")

    def count(self, key: str) -> int:
        """Read a positive whole number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(f"{self.spelled(key)} is {value!r}, not a positive whole number")
        if value > LARGEST_COUNT:
            raise self.error(f"{self.spelled(key)} is {value:.3g}, larger than in any model")
        return value

    def check_layers(self) -> None:
        """Refuse more layers than any model has, and kinds of layers in a form that says nothing.

        Raises:
            InputError: such a value.
        """
        if self.get("num_hidden_layers") is not None and self.count("num_hidden_layers") > MOST_LAYERS:
            layers = self.get("num_hidden_layers")
            raise self.error(f"{self.spelled('num_hidden_layers')} is {layers:.3g}, more than in any model")
        kinds = self.get("layer_types")
        if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
            raise self.error(f"layer_types is {kinds!r}, not a list of names")
        for key in ("max_window_layers", "sliding_window_pattern"):
            value = self.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise self.error(f"{key} is {value!r}, not a whole number")

    def optional_count(self, key: str) -> int | None:
        """Read a positive whole number, or None where the key is absent without a default, or null."""
        return None if self.get(key) is None else self.count(key)

    def number(self, key: str) -> float:
        """Read a number that is not negative; null counts as 0."""
        value = 0.0 if self.get(key) is None else self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise self.error(f"{self.spelled(key)} is {value!r}, not a number of at least 0")
        return float(value)

    def probability(self, key: str) -> float:
        """Read a dropout probability in [0, 1)."""
        value = self.number(key)
        if value >= 1:
            raise self.error(f"{self.spelled(key)} is {value}, not a probability below 1")
        return value

    def flag(self, key: str) -> bool:
        """Read true or false; null counts as false."""
        value = self.get(key)
        if value not in (None, True, False):
            raise self.error(f"{self.spelled(key)} is {value!r}, not true or false")
        return bool(value)

    def text(self, key: str) -> str:
        """Read a name such as ``silu``."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(f"{self.spelled(key)} is {value!r}, not a name")
        return value

    def rotary_factor(self, key: str = "partial_rotary_factor") -> float:
        """Read the rotated share of a head: what ``rope_parameters`` (or ``rope_scaling``) says, else ``key``.

        The order is that of transformers' ``convert_rope_params_to_dict``.
        """
        rope = self.get("rope_scaling") or self.get("rope_parameters") or {}
        if not isinstance(rope, Mapping):
            raise self.error(f"rope_parameters is {rope!r}, not an object")
        factor = rope.get("partial_rotary_factor", self.get(key))
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1:
            raise self.error(f"{key} is {factor!r}, not a number above 0 and at most 1")
        return float(factor)


class Dims(NamedTuple):
    """The sizes every decoder has."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    positions: int
    tied: bool


def read_dims(
    config: HfConfig,
    mlp: int,
    *,
    grouped: bool = False,
    own_head_dim: bool = False,
    divides: bool = True,
) -> Dims:
    """Read the common sizes and check them against each other.

    Args:
        config: the config.
        mlp: width of the feed-forward network.
        grouped: the family reads ``num_key_value_heads`` (null: as many as heads).
        own_head_dim: the family reads ``head_dim`` (null: hidden_size / num_attention_heads).
        divides: hidden_size must be a multiple of num_attention_heads even where head_dim is given.

    Raises:
        InputError: a size is absent, not positive, or does not divide as attention needs it.
    """
    config.require("hidden_size", "num_hidden_layers")
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = config.optional_count("head_dim") if own_head_dim else None
    if hidden % heads and (divides or head_dim is None):
        raise config.error(
            f"{config.spelled('hidden_size')} {hidden} is not a multiple of "
            f"{config.spelled('num_attention_heads')} {heads}"
        )
    kv_heads = (config.optional_count("num_key_value_heads") if grouped else None) or heads
    if heads % kv_heads:
        raise config.error(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    return Dims(
        hidden=hidden,
        layers=config.count("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        mlp=mlp,
        vocab=config.count("vocab_size"),
        positions=config.count("max_position_embeddings"),
        tied=config.flag("tie_word_embeddings"),
    )
