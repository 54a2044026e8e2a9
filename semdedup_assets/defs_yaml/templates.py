"""Fills in the templates of a `defs.yaml`, such as `{{ env.BUCKET }}` and `{{ context.project_root }}`."""

import os
from collections.abc import Mapping
from typing import Any

from semdedup_assets.defs_yaml.problems import Problem
from semdedup_assets.defs_yaml.schema import SettingPath


class Templates:
    """Fills in `{{ … }}`, and remembers where that failed.

    Args:
        scope: what templates can name beside `env`.

    Attributes:
        problems: of the values that could not be filled in, and were left as they are.
    """

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.problems: list[Problem] = []
        self._environment = _Environment()
        self._scope = {**scope, "env": self._environment}

    def filled(self, value: Any, path: SettingPath) -> Any:
        """A value with all templates in it filled in."""
        if isinstance(value, dict):
            return {key: self.filled(part, (*path, key)) for key, part in value.items()}
        if isinstance(value, list):
            return [self.filled(part, (*path, index)) for index, part in enumerate(value)]
        # Other strings are left as they are: a template's text "2024" becomes a number.
        return self._rendered(value, path) if isinstance(value, str) and "{{" in value else value

    def _rendered(self, template: str, path: SettingPath) -> Any:
        from jinja2 import StrictUndefined
        from jinja2.nativetypes import NativeEnvironment

        self._environment.unset.clear()
        try:
            value = NativeEnvironment(undefined=StrictUndefined).from_string(template).render(self._scope)
            # A template that is one name alone gives what the name stands for, also where that is nothing.
            _ = str(value)
        except Exception as error:  # A template may call what it likes, which may raise anything.
            unset = ", ".join(self._environment.unset)
            reason = f"the environment variable {unset} is not set; set it where this is run, or give a default"
            cause = f"{type(error).__name__}: {error}; there are: {', '.join(sorted(self._scope))}"
            self.problems.append(Problem(path, f"{template}: {reason if unset else cause}"))
            return template
        return value


class _Environment:
    """`env` in templates: `{{ env.NAME }}`, `{{ env('NAME', 'default') }}` or `{{ env.NAME or 'default' }}`."""

    def __init__(self) -> None:
        self.unset: list[str] = []

    def __call__(self, name: str, default: Any = None) -> Any:
        value = os.environ.get(name, default)
        if value is None:
            self.unset.append(name)
            return _Unset()
        return value

    def __getattr__(self, name: str) -> Any:
        # Jinja asks every object for marks of its own.
        if name.startswith(("jinja", "_")):
            raise AttributeError(name)
        return self(name)


class _Unset:
    """A variable that is not set: false, and never a part of a text, which Jinja would make `None/photos` of."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        message = "the variable is not set"
        raise LookupError(message)
