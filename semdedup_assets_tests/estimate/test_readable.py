import pytest

from semdedup_assets.estimate.readable import readable_bytes, readable_seconds, room

NO_BREAK = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "< 0.1 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (18_600, "5 h 10 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert readable_seconds(seconds).replace(NO_BREAK, " ") == text
    assert " " not in readable_seconds(seconds)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (512, "512 bytes"),
        (24_100, "24.1 kB"),
        (999_700, "1.0 MB"),
        (1_400_000_000, "1.4 GB"),
        (2_500_000_000_000_000, "2.5 PB"),
    ],
)
def test_bytes_are_readable(count: int, text: str) -> None:
    assert readable_bytes(count).replace(NO_BREAK, " ") == text
    assert " " not in readable_bytes(count)


def test_too_little_room_is_said_plainly() -> None:
    sentence = room(2_000_000, 1_000_000, of="the disk").replace(NO_BREAK, " ")
    assert sentence == "2.0 MB of 1.0 MB that the disk has: DOES NOT FIT"
    assert room(1_000_000, 2_000_000, of="the disk").endswith(": fits")
    assert room(1_000_000, None, of="the store").endswith("how much the store has is not known")
