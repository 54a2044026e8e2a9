"""What the README says is what there is."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel

from semdedup_assets.settings import Pipeline

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def test_the_library_example_runs_as_it_is_written() -> None:
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {"vectors": rng.normal(size=(2000, 16))}
    exec(blocks("python")[0], names)
    result = names["result"]
    assert result.keep_mask(0.05).shape == (2000,)
    assert 0.5 <= result.keep_mask(result.epsilon_for(keep=0.5)).mean() < 0.6


def test_the_example_of_a_pipeline_is_valid() -> None:
    document = yaml.safe_load(blocks("yaml")[0])
    pipeline = Pipeline.model_validate(document["attributes"])
    assert pipeline.clustering.k == ("auto", "50000")
    assert pipeline.epsilons == ("0.05", "0.1", "keep=50%")


def settings_of(cell: str) -> list[str]:
    """`a.b`, `c` in a cell are a.b and a.c."""
    first, *others = re.findall(r"`([a-z_.]+)`", cell)
    section, dot, _ = first.rpartition(".")
    return [first, *(f"{section}{dot}{other}" for other in others)]


def test_the_table_of_settings_names_every_setting_and_no_other() -> None:
    table = README.split("## Settings")[1].split("\n\n")[1]
    named = {name for row in table.splitlines()[2:] for name in settings_of(row.split("|")[1])}
    assert {name.split(".")[0] for name in named} == set(Pipeline.model_fields)
    for name in sorted(name for name in named if "." in name):
        section, field = name.split(".")
        annotation = Pipeline.model_fields[section].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            assert field in annotation.model_fields, name


def test_every_file_that_is_linked_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    commands = set(re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE))
    assert {"demo", "test", "ui", "lint"} <= commands <= targets
