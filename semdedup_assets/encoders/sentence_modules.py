"""What a folder of sentence-transformers says of its model: pooling, tokens, prompt, further layers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from semdedup_assets.encoders.checkpoints import local_path, tokenizer_problems, weight_problems

Pooling = Literal["last_token", "mean", "cls"]
ReadJson = Callable[[str], Any]
"""A file's name inside the model's folder to its content, None where there is no such file."""

# Divided by its norm, a mean over the square root of the tokens is the mean.
_POOLING: dict[str, Pooling] = {
    "mean": "mean", "mean_sqrt_len_tokens": "mean", "cls": "cls", "lasttoken": "last_token",
}  # fmt: skip
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_TRANSFORMER_FILES = [
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
_TRANSFORMER_SETTINGS = ["do_lower_case", "processing_kwargs"] + [
    f"{part}_{ending}" for part in ("model", "tokenizer", "processor", "config") for ending in ("args", "kwargs")
]


class HubOutOfReachError(Exception):
    """Whether the hub has a file cannot be known: it is out of reach, and the cache does not say."""


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """What `modules.json` and the files that it names say.

    Attributes:
        pooling: where it is one that `kind: transformers` can do.
        subfolder: of the transformer, empty for the folder itself.
        max_tokens: of a text, where it says so.
        prompt: its default one, empty for none.
        pools_prompt: whether the prompt's tokens count in a mean.
        unsupported: modules and settings that `kind: transformers` cannot do, in words.
    """

    pooling: Pooling | None
    subfolder: str
    max_tokens: int | None
    prompt: str
    pools_prompt: bool
    unsupported: tuple[str, ...]


def read_sentence_modules(read: ReadJson) -> SentenceModules | None:
    """Read a model's modules, None where it is none of sentence-transformers.

    Raises:
        ValueError: a file is damaged.
        HubOutOfReachError: see there.
    """
    modules = read("modules.json")
    if modules is None:
        return None
    try:
        return _sentence_modules(modules, read)
    except (KeyError, TypeError, AttributeError) as error:
        message = f"modules.json or a file that it names is not as sentence-transformers writes it ({error!r})"
        raise ValueError(message) from error


def _sentence_modules(modules: list[dict[str, Any]], read: ReadJson) -> SentenceModules:
    if not isinstance(modules, list) or not modules:
        message = "no list of modules"
        raise TypeError(message)
    unsupported: list[str] = []
    pooling, subfolder, transformer = dict[str, Any](), "", dict[str, Any]()
    for position, module in enumerate(modules):
        name, path = _class_name(module["type"]), module["path"]
        if name == "Transformer" and position == 0:
            subfolder = path
            files = (read(_inside(path, file)) for file in _TRANSFORMER_FILES)
            transformer = next((content for content in files if content is not None), {})
            unsupported += _beyond_a_transformer(transformer)
        elif name == "Pooling" and position == 1:
            pooling = read(_inside(path, "config.json"))
        elif name != "Normalize":
            unsupported.append(f"module {module['type']}")
    config = read("config_sentence_transformers.json") or {}
    default = config.get("default_prompt_name")
    modes = _pooling_modes(pooling)
    return SentenceModules(
        pooling=_POOLING.get(modes[0]) if len(modes) == 1 else None,
        subfolder=subfolder,
        max_tokens=transformer.get("max_seq_length"),
        prompt=(config.get("prompts", {}).get(default) or "") if default else "",
        pools_prompt=pooling.get("include_prompt", True),
        unsupported=tuple(unsupported),
    )


def _class_name(type_: str) -> str:
    """Name of a class that is sentence-transformers' own; of others, the whole path."""
    return type_.rpartition(".")[2] if type_.startswith("sentence_transformers.") else type_


def _inside(path: str, name: str) -> str:
    return f"{path}/{name}" if path not in ("", ".") else name


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    mode = config.get("pooling_mode")
    if mode is not None:
        return [mode] if isinstance(mode, str) else list(mode)
    # Where none is on, sentence-transformers takes the mean.
    return [name for key, name in _LEGACY_POOLING.items() if config.get(key)] or ["mean"]


def _beyond_a_transformer(config: dict[str, Any]) -> list[str]:
    found = []
    if config.get("transformer_task", "feature-extraction") != "feature-extraction":
        found.append(f"task {config['transformer_task']}")
    if "message" in config.get("modality_config", {}):
        found.append("chat messages")
    return found + [f"{key} {config[key]}" for key in _TRANSFORMER_SETTINGS if config.get(key)]


def model_files(name: str) -> tuple[ReadJson, list[str]]:
    """How the files of a text model are read on this machine, where no hub is asked, and what is wrong with them.

    Args:
        name: a local folder, or a hub's id, whose files may be in the cache.

    Returns:
        What reads them; sentences that begin with the setting's name, none for a hub's id.

    Raises:
        ValueError: the folder is not there.
    """
    folder = local_path(name)
    if folder is None:
        return read_in_cache(name), []
    return read_in_folder(folder), [*weight_problems(folder), *tokenizer_problems(folder)]


def read_in_folder(folder: Path) -> ReadJson:
    """Of a local model."""

    def read(name: str) -> Any:
        file = folder / name
        return _parsed(file) if file.is_file() else None

    return read


def read_on_hub(name: str) -> ReadJson:
    """Of a model on the hub, or in its cache."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def read(file: str) -> Any:
        try:
            return _parsed(Path(hf_hub_download(name, file)))
        except LocalEntryNotFoundError as error:
            if try_to_load_from_cache(name, file) is _CACHED_NO_EXIST:
                return None
            raise HubOutOfReachError(str(error)) from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise HubOutOfReachError(str(error)) from error

    return read


def read_in_cache(name: str) -> ReadJson:
    """Of a model on the hub, as far as its files are in the cache of this machine: no hub is asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def read(file: str) -> Any:
        try:
            found = try_to_load_from_cache(name, file)
        except HFValidationError:
            return None
        return _parsed(Path(found)) if isinstance(found, str) else None

    return read


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{file} is no JSON ({error})"
        raise ValueError(message) from error
