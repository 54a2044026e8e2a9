"""Encoders: records in, unit vectors out. A kind of encoder is one file and one member of `Encoder`."""

from typing import Annotated

from pydantic import Field

from semdedup_assets.encoders.openclip import OpenClip
from semdedup_assets.encoders.precomputed import Precomputed
from semdedup_assets.encoders.sentence_transformers import SentenceTransformers
from semdedup_assets.encoders.text import Transformers
from semdedup_assets.encoders.timm import Timm
from semdedup_assets.encoders.torchscript import TorchScript

Encoder = Annotated[
    OpenClip | Timm | TorchScript | Transformers | SentenceTransformers | Precomputed, Field(discriminator="kind")
]

__all__ = ["Encoder", "OpenClip", "Precomputed", "SentenceTransformers", "Timm", "TorchScript", "Transformers"]
