"""Texts by any model of sentence-transformers: transformers with further layers, and static ones for CPUs."""

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.batching import Window, embedded_window, prefetch, split_window
from semdedup_assets.encoders.checkpoints import content_hash, local_model, local_path, short_name
from semdedup_assets.encoders.own_code import EMBED_YOURSELF, why_not_loaded
from semdedup_assets.encoders.precision import PRECISION_DESCRIPTION, Precision, autocast, resolve_dtype
from semdedup_assets.encoders.sentence_modules import model_files, read_sentence_modules
from semdedup_assets.encoders.text import TRANSFORMERS_ERRORS, quiet_transformers, token_limit
from semdedup_assets.encoders.text_windows import (
    DEFAULT_MAX_TOKENS,
    MAX_TOKENS_DESCRIPTION,
    PROMPT_DESCRIPTION,
    batches_by_length,
    cut_for,
    cut_texts,
    limit_of,
    text_windows,
)
from semdedup_assets.records import Content, Embedded, Invalid, Record

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

_INSTALL = "install sentence-transformers (`pip install 'semdedup-assets[sentence-transformers]'`)"
_USUAL_TOKEN = 4  # characters
_NO_WORD = "no vector: the model knows none of the words in this text"


class SentenceTransformers(BaseModel, frozen=True, extra="forbid"):
    """Texts as `SentenceTransformer.encode` embeds them, with all modules of the model.

    Static models (also folders of model2vec) embed thousands of texts a second on a CPU.
    """

    kind: Literal["sentence_transformers"] = "sentence_transformers"
    model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="Hub id, or a local folder (`path` or `package:<import name>/<path>`) of sentence-transformers or "
        "model2vec.",
    )
    max_tokens: int | None = Field(None, ge=1, description=MAX_TOKENS_DESCRIPTION)
    prompt: str | None = Field(None, description=PROMPT_DESCRIPTION)
    prompt_name: str | None = Field(None, description="A prompt by its name in the model's configuration.")
    precision: Precision = Field("auto", description=PRECISION_DESCRIPTION)

    @model_validator(mode="after")
    def _has_one_prompt(self) -> "SentenceTransformers":
        if self.prompt is not None and self.prompt_name is not None:
            message = "prompt_name: `prompt` is given too; remove one of them"
            raise ValueError(message)
        return self

    @property
    def accepts(self) -> Content:
        """What its records carry."""
        return "text"

    @property
    def name(self) -> str:
        """Short, path-safe name of the model."""
        return short_name(self.model)

    def identity(self) -> dict[str, Any]:
        """What can change the vectors; a local folder by its content, wherever it is stored.

        `precision: auto` is one identity, though bfloat16 and float32 differ by about 1e-4 in cosine.

        Raises:
            ValueError: a local folder is not there.
        """
        folder = local_path(self.model)
        return self.model_dump() | {"model": {"content": content_hash(folder)} if folder else self.model}

    def problems(self) -> list[str]:
        """What is wrong with the model, seen without loading it or asking a hub; begins with the setting's name."""
        if find_spec("sentence_transformers") is None:
            return [f"kind: sentence_transformers is not installed here; {_INSTALL}"]
        try:
            folder = local_model(self.model)
        except ValueError as error:
            return [f"model: {error}"]
        return _missing_modules(folder) if folder else []

    def configuration_problems(self) -> list[str]:
        """What the model's own files, in its folder or the hub's cache, have against the settings.

        Returns:
            Sentences that begin with the setting's name.

        Raises:
            ValueError: one of the files is damaged.
        """
        is_local = local_path(self.model) is not None
        read, found = model_files(self.model)
        if is_local:
            read_sentence_modules(read)
        config = read("config_sentence_transformers.json")
        prompts = (config or {}).get("prompts") or {}
        if self.prompt_name is not None and self.prompt_name not in prompts and (is_local or config):
            known = ", ".join(prompts) or "none"
            found.append(f"prompt_name: {self.model} has no prompt {self.prompt_name!r}; it has: {known}")
        return found

    def load(self, compute: Compute) -> "SentenceModel":
        """Load the model.

        Raises:
            ValueError: library, model, prompt or device does not exist or cannot be reached, or `max_tokens` is more
                than the model can take; names the remedy.
        """
        if find_spec("sentence_transformers") is None:
            message = f"kind: sentence_transformers is not installed here; {_INSTALL}"
            raise ValueError(message)
        device = compute.torch_device
        model = _loaded(self.model)
        prompt = self._prompt_of(model)
        max_tokens = self._cut_at(model)
        model.eval().requires_grad_(requires_grad=False).to(device)
        loaded = SentenceModel(
            model=model,
            max_tokens=max_tokens,
            prompt=prompt,
            dimension=0,
            dtype=resolve_dtype(self.precision, device),
            compute=compute,
        )
        # Of models with a projection, no attribute says it reliably.
        return SentenceModel(**vars(loaded) | {"dimension": loaded.vectors(["one"]).shape[1]})

    def _prompt_of(self, model: "SentenceTransformer") -> str:
        if self.prompt is not None:
            return self.prompt
        name = self.prompt_name or model.default_prompt_name
        if name is not None and name not in model.prompts:
            known = ", ".join(model.prompts) or "none"
            message = f"prompt_name: {self.model} has no prompt {name!r}; it has: {known}"
            raise ValueError(message)
        return (model.prompts[name] or "") if name else ""

    def _cut_at(self, model: "SentenceTransformer") -> int:
        """Have the model cut texts, and say at how many tokens."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerBase

        tokenizer, own, limit = model.tokenizer, model.max_seq_length, None
        if isinstance(tokenizer, Tokenizer) and tokenizer.truncation:
            own = tokenizer.truncation["max_length"]
        if isinstance(tokenizer, PreTrainedTokenizerBase) and model.transformers_model is not None:
            tokenizer.model_max_length, saved = 1 << 30, tokenizer.model_max_length
            limit = token_limit(model.transformers_model, tokenizer)
            tokenizer.model_max_length = saved
        if self.max_tokens is not None and limit is not None and self.max_tokens > limit:
            message = f"max_tokens: {self.max_tokens} is more than {self.model} can take; at most {limit}"
            raise ValueError(message)
        max_tokens = self.max_tokens or int(min(own or DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS))
        if isinstance(tokenizer, Tokenizer):
            tokenizer.enable_truncation(max_tokens)
        else:
            model.max_seq_length = max_tokens
        return max_tokens


def _loaded(name: str) -> "SentenceTransformer":
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    folder = local_path(name)
    for problem in _missing_modules(folder) if folder else ():
        raise ValueError(problem)
    try:
        with quiet_transformers():
            if folder is not None and _is_bare_static(folder):
                return SentenceTransformer(modules=[_static_module(folder)], device="cpu")
            return SentenceTransformer(
                str(folder or name), device="cpu", trust_remote_code=False, model_kwargs={"dtype": torch.float32}
            )
    except (*TRANSFORMERS_ERRORS, SafetensorError) as error:
        remedy = (
            "name a model of sentence-transformers on a hub that can be reached, or a local folder with modules.json and "
            "weights"
        )
        message = f"model: {name} {why_not_loaded(error, remedy, instead=EMBED_YOURSELF)}"
        raise ValueError(message) from error


def _missing_modules(folder: Path) -> list[str]:
    """Sentence-transformers would guess the pooling of a folder without modules."""
    if (folder / "modules.json").is_file() or _is_bare_static(folder):
        return []
    return [
        f"model: {folder.absolute()} holds no modules.json; name a folder of sentence-transformers or model2vec, or use "
        "`kind: transformers` with the model's `pooling`"
    ]


def _is_bare_static(folder: Path) -> bool:
    """Whether a folder was written by model2vec alone."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return config.get("model_type") == "model2vec" and not (folder / "modules.json").exists()


def _static_module(folder: Path) -> "torch.nn.Module":
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    module: torch.nn.Module = StaticEmbedding.load(str(folder))
    return module


@dataclass(frozen=True, slots=True)
class _Features:
    """A window ready for the model.

    Attributes:
        window: n items.
        batches: what the model takes, each with its items' positions in the window.
    """

    window: Window
    batches: list[tuple[dict[str, Any], list[int]]]


@dataclass(frozen=True)
class SentenceModel:
    """A loaded model of sentence-transformers.

    Attributes:
        model: its modules.
        max_tokens: tokens of a text that are read; the rest is cut.
        prompt: put before each text.
        dimension: length of a vector.
        dtype: number format of the matrix products.
        compute: device and batch size.
    """

    model: "SentenceTransformer"
    max_tokens: int
    prompt: str
    dimension: int
    dtype: "torch.dtype"
    compute: Compute

    def embed(self, records: Iterable[Record | Invalid]) -> Iterator[Embedded]:
        """Embed texts in the source's order; within a few thousand, texts of similar length share a batch.

        Args:
            records: texts, and invalid items.

        Yields:
            A batch per window of the stream; in its `skipped` are empty texts and, of static models, those of unknown
            words only.
        """
        for ready in prefetch(self._preprocessed(records), depth=1):
            outputs = np.empty((len(ready.window.items), self.dimension), np.float32)
            for features, positions in ready.batches:
                outputs[positions] = self._forward(features)
            reasons = self._reasons(ready.window, outputs)
            known = [at for at, reason in enumerate(reasons) if reason is None]
            yield embedded_window(split_window(ready.window, reasons), outputs[known])

    def _reasons(self, window: Window, outputs: np.ndarray) -> list[str | None]:
        """Of each item why it has no vector, as far as its words are the cause; else None."""
        from tokenizers import Tokenizer

        reasons: list[str | None] = [None] * len(outputs)
        lost = np.flatnonzero(~np.isfinite(outputs).all(axis=1) | ~outputs.any(axis=1)).tolist()
        tokenizer = self.model.tokenizer
        if lost and isinstance(tokenizer, Tokenizer):
            unknown = _unknown_token(tokenizer)
            heads = self._heads([str(window.items[at].record.payload) for at in lost])
            for at, (ids, _) in zip(
                lost, _static_tokens(tokenizer, [self.prompt + head for head in heads]), strict=True
            ):
                if all(id_ == unknown for id_ in ids):
                    reasons[at] = _NO_WORD
        return reasons

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dimension) float32, as the model gives them, in one batch."""
        return self._forward(self._features(texts))

    def _preprocessed(self, records: Iterable[Record | Invalid]) -> Generator[_Features, None, None]:
        on_cpu = self.compute.torch_device.type == "cpu"
        size = self.compute.batch_size or (256 if on_cpu else 1024)
        for window, texts in text_windows(records):
            heads = self._heads(texts)
            lengths = [min(self.max_tokens, len(head) // _USUAL_TOKEN + 2) for head in heads]
            batches = batches_by_length(lengths, tokens=4096 if on_cpu else 32_768, size=size)
            yield _Features(window, [(self._features([heads[at] for at in batch]), batch) for batch in batches])

    def _heads(self, texts: list[str]) -> list[str]:
        """The texts without what the model would cut."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerBase

        tokenizer, prompted = self.model.tokenizer, [self.prompt + text for text in texts]
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            if tokenizer.truncation_side == "left":
                return [text[-limit_of(self.max_tokens) :] for text in texts]
            heads = cut_for(tokenizer, prompted, self.max_tokens)
        elif isinstance(tokenizer, Tokenizer):
            heads = cut_texts(prompted, lambda some: _static_tokens(tokenizer, some), self.max_tokens)
        else:
            heads = [text[: limit_of(self.max_tokens)] for text in prompted]
        return [head[len(self.prompt) :] for head in heads]

    def _features(self, texts: Sequence[str]) -> dict[str, Any]:
        features: dict[str, Any] = self.model.preprocess(list(texts), prompt=self.prompt or None)
        return features

    def _forward(self, features: dict[str, Any]) -> np.ndarray:
        import torch
        from sentence_transformers.util import batch_to_device

        device = self.compute.torch_device
        with torch.inference_mode(), autocast(self.dtype, device):
            output = self.model(batch_to_device(features, device))["sentence_embedding"]
        vectors: np.ndarray = output[:, : self.model.truncate_dim].float().cpu().numpy()
        return vectors


def _static_tokens(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], int | None]]:
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [(found.ids, max((end for _, end in found.offsets), default=0)) for found in encodings]


def _unknown_token(tokenizer: Any) -> int | None:
    """Id of the token that stands for what is not in the vocabulary."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    found: int | None = None if token is None else tokenizer.token_to_id(token)
    return found
