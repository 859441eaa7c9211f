"""Rates as people write them, worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsconf.errors import InputError
from dsconf.units import format_rate, parse_rate


@pytest.mark.parametrize(
    ("written", "bytes_per_second"),
    [
        ("400Gbit/s", 50e9),
        ("400 Gbits/s", 50e9),
        ("400Gb/s", 50e9),
        ("400gb/s", 50e9),
        ("100Gbps", 12.5e9),
        ("1.6Tbit/s", 200e9),
        ("50GB/s", 50e9),
        ("50GBps", 50e9),
        ("25GiB/s", 25 * 2**30),
        ("8Gibit/s", 2**30),
        ("900_000kB/s", 9e8),
        (" 8b/s ", 1.0),
    ],
)
def test_a_small_b_is_a_bit_and_a_large_one_eight(written: str, bytes_per_second: float) -> None:
    assert parse_rate(written) == bytes_per_second


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("400", "'400' has no unit; write it like 400Gbit/s (bits) or 50GB/s (bytes)"),
        ("50e9", "'50e9' has no unit; write it like"),
        ("400G", "'400G' is not a rate; write it like"),
        ("400Gbit", "'400Gbit' is not a rate"),
        ("50GB", "'50GB' is not a rate"),
        ("5iB/s", "'5iB/s' is not a rate"),
        ("", "'' is not a rate"),
        ("0Gbit/s", "0Gbit/s is not a positive, finite rate"),
        ("-1GB/s", "-1GB/s is not a positive, finite rate"),
        ("1e999GB/s", "1e999GB/s is not a positive, finite rate"),
    ],
)
def test_what_is_no_rate_says_how_one_is_written(written: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_rate(written)
    assert str(caught.value).startswith(told)


def test_rates_as_they_are_printed() -> None:
    assert [format_rate(rate, "bit") for rate in (50e9, 12.5e9, 200e9, 25 * 2**30)] == [
        "400 Gbit/s",
        "100 Gbit/s",
        "1.6 Tbit/s",
        "214.7 Gbit/s",
    ]
    assert [format_rate(rate) for rate in (300e9, 1.2e12, 9e8, 4e15, 12)] == [
        "300 GB/s",
        "1.2 TB/s",
        "900 MB/s",
        "4,000 TB/s",
        "12 B/s",
    ]


@given(st.floats(1, 1e14), st.sampled_from(["B", "bit"]))
def test_what_is_printed_reads_back(rate: float, unit: str) -> None:
    assert parse_rate(format_rate(rate, unit).replace(",", "")) == pytest.approx(rate, rel=1e-3)
