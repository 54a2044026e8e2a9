"""What a workload would take, against the same by hand."""

import pytest

from semdedup_assets.algorithm.cost_projection import Workload, projected_seconds

MEASURED, PROJECTED = Workload(1000, 10, 500), Workload(8000, 40, 2000)


def test_each_phase_grows_by_what_drives_it() -> None:
    # 5 s of pairs: (8000² / 40) / (1000² / 10) = 16 times; 3 s of others, of which 1 s has no phase: 8 times.
    found = projected_seconds(
        8, {"compare": 5, "read": 2}, drivers={"compare": "pairs"}, measured=MEASURED, projected=PROJECTED
    )
    assert found == pytest.approx(5 * 16 + 3 * 8)


def test_a_stage_that_grows_as_a_whole_is_not_told_by_phases() -> None:
    found = projected_seconds(6, {"fit": 5}, drivers={"": "sample × k"}, measured=MEASURED, projected=PROJECTED)
    assert found == pytest.approx(6 * 4 * 4)


def test_the_measured_workload_takes_what_was_measured() -> None:
    for drivers in ({}, {"a": "items × k"}, {"": "pairs"}):
        found = projected_seconds(7, {"a": 3}, drivers=drivers, measured=MEASURED, projected=MEASURED)  # type: ignore[arg-type]
        assert found == pytest.approx(7)
