"""Gradients of ranks that share sequences: as wide on the wire as the memory model has them."""

from __future__ import annotations

import pytest

from dsconf.config.settings import Settings
from dsconf.memory.zero.wrapper import widths
from dsconf.speed.communication import gradient_width


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [None, "bf16", "fp32"])
@pytest.mark.parametrize(("ranks", "scattered"), [(1, True), (2, True), (2, False)])
def test_the_same_width_in_speed_and_memory(stage: int, dtype: str | None, ranks: int, scattered: bool) -> None:
    settings = Settings(
        stage=stage,
        precision="bf16",
        sequence_parallel=ranks,
        sequence_parallel_dtype=dtype,
        reduce_scatter=scattered,
    )
    assert gradient_width(settings) == widths(settings).communicate
    if ranks == 1 or (dtype == "bf16" and (stage in (0, 3) or not scattered)):
        assert gradient_width(settings) == 2
    else:
        assert gradient_width(settings) == 4
