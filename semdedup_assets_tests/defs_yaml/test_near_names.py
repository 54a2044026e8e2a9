"""A misspelt key or value of any depth is reported where it stands, with the name that is meant."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from semdedup_assets.comparison_settings import Comparison, ModelComparison
from semdedup_assets.defs_yaml.commented import commented_settings
from semdedup_assets.defs_yaml.problems import schema_problems, setting_problems
from semdedup_assets.defs_yaml.scaffold import NewComparison, NewPipeline, NewTrainingComparison
from semdedup_assets.defs_yaml.schema import SettingPath
from semdedup_assets.settings import Pipeline
from semdedup_assets_tests.test_component import COMMENTED_SETTING

SETTINGS: list[tuple[dict[str, Any], type[BaseModel]]] = [
    (NewPipeline().settings("toy"), Pipeline),
    (NewPipeline(source="jsonl").settings("toy"), Pipeline),
    (NewComparison().settings("toy"), Comparison),
    (NewTrainingComparison().settings("toy"), ModelComparison),
]


def keys_of(value: Any, path: SettingPath = ()) -> Iterator[SettingPath]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if isinstance(key, str) and len(key) > 3:
            yield (*path, key)
        yield from keys_of(part, (*path, key))


@pytest.mark.parametrize(("minimal", "model"), SETTINGS, ids=lambda value: getattr(value, "__name__", "settings"))
def test_every_misspelt_key_is_reported_with_the_name_that_is_meant(
    minimal: dict[str, Any], model: type[BaseModel]
) -> None:
    text = commented_settings(minimal, model)
    everything = yaml.safe_load("attributes:\n" + COMMENTED_SETTING.sub(r"\1", text))["attributes"]
    paths = list(keys_of(everything))
    assert len(paths) > 5
    for path in paths:
        settings = deepcopy(everything)
        section = settings
        for part in path[:-1]:
            section = section[part]
        misspelt = path[-1][:-1] + "_"
        section[misspelt] = section.pop(path[-1])
        problems = {problem.path: problem.message for problem in schema_problems(settings, model)}
        if path[-1] == "kind":
            assert problems[path] == f"missing; is {misspelt} meant?"
        else:
            assert path[-1] in problems[(*path[:-1], misspelt)], path


@pytest.mark.parametrize(
    ("changes", "path", "near"),
    [
        ({"manifests": ["parquett"]}, ("manifests", 0), "parquet"),
        ({"analyses": {"follow": ["detection_eficiency"]}}, ("analyses", "follow", 0), "detection_efficiency"),
        ({"encoder": {"kind": "openclap"}}, ("encoder", "kind"), "openclip"),
        ({"selection": {"keep": "eazy"}}, ("selection", "keep"), "easy"),
        ({"compute": {"engine": "rai"}}, ("compute", "engine"), "ray"),
    ],
)
def test_a_misspelt_choice_is_reported_with_the_one_that_is_meant(
    changes: dict[str, Any], path: SettingPath, near: str
) -> None:
    settings = {"dataset": "toy", "source": {"kind": "vectors", "path": "x"}, "encoder": {"kind": "precomputed"}}
    messages = {problem.path: problem.message for problem in setting_problems({**settings, **changes})}
    assert f"near names: {near}" in messages[path]
