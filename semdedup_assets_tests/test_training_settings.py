"""Settings of training and evaluation with which models could not be told apart are refused, with what to do."""

import pytest
from pydantic import ValidationError

from semdedup_assets.training_settings import Training, ZeroShot


@pytest.mark.parametrize("template", ["a photo of", "a photo of a {class}", "a {kind} photo of {}", ""])
def test_a_template_without_a_place_for_the_class_is_refused(template: str) -> None:
    with pytest.raises(ValidationError, match=r"put where `\{\}` stands"):
        ZeroShot(path="set", template=template)


def test_a_class_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="cat: listed more than once"):
        ZeroShot(path="set", classes=("cat", "dog", "cat"))


@pytest.mark.parametrize("command", ["train {seed}", "train {manifest} {seed}", "train {out} {seed}"])
def test_a_command_that_could_train_the_same_on_every_kept_set_is_refused(command: str) -> None:
    with pytest.raises(ValidationError, match=r"\{out\} and one of \{manifest\} and \{tars\} must be in it"):
        Training(command=command)


@pytest.mark.parametrize("data", ["manifest", "tars"])
def test_a_command_names_what_it_trains_on_and_where_it_writes(data: str) -> None:
    command = f"train {{{data}}} {{seed}} {{out}}"
    assert Training(command=command).command == command
