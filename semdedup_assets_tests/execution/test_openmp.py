"""Threads that wait for one another sleep, unless the user says otherwise."""

import os

import pytest

from semdedup_assets.execution.openmp import let_threads_sleep


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "passive"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_a_setting_of_the_user_stays(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, str], expected: dict[str, str]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # So that whatever is set below is taken back.
        monkeypatch.delenv(name)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    let_threads_sleep()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected
