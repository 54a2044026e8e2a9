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


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"epsilons": 0.05}, ("epsilons",), "0.05 is not a list; write `[0.05]`"),
        ({"epsilons": None}, ("epsilons",), "empty; give a value, or remove the key"),
        ({"dataset": None}, ("dataset",), "empty; give a value"),
        ({"manifests": []}, ("manifests",), "empty; give at least one, or remove the key"),
        ({"clustering": 3}, ("clustering",), "3 is not a mapping"),
        ({"model": 3}, ("model",), "3 is not a text; put it into quotes"),
        ({"model": False}, ("model",), "YAML takes yes, no, on and off for true and false"),
        (
            {"selection": {"keep": False}},
            ("selection", "keep"),
            "False is none of hard, middle, easy, random; YAML takes",
        ),
        ({"dataset": "a b"}, ("dataset",), "'a b' is not possible here. Name of the dataset"),
        ({"dataset": "a" * 101}, ("dataset",), "at most 100"),
        ({"encoder": {"model": "x"}}, ("encoder", "kind"), "missing; one of openclip, timm, torchscript"),
        ({"store": ""}, ("store",), "at least 1 character"),
        ({"store": "s3:/bucket"}, ("store",), "is s3://bucket meant?"),
    ],
)
def test_what_the_schema_rejects_is_said_in_the_words_of_yaml(
    changes: dict[str, Any], path: SettingPath, words: str
) -> None:
    settings = {"dataset": "toy", "source": {"kind": "vectors", "path": "x"}, "encoder": {"kind": "precomputed"}}
    messages = {problem.path: problem.message for problem in setting_problems({**settings, **changes})}
    assert words in messages[path]
