"""Encoders: records in, unit vectors out. A kind of encoder is one file and one member of `Encoder`."""

from typing import Annotated

from pydantic import Field

from semdedup_assets.encoders.openclip import OpenClip
from semdedup_assets.encoders.precomputed import Precomputed
from semdedup_assets.encoders.text import Transformers

Encoder = Annotated[OpenClip | Transformers | Precomputed, Field(discriminator="kind")]

__all__ = ["Encoder", "OpenClip", "Precomputed", "Transformers"]
