"""What settings are made of: the base of their models, and numbers within bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Box = tuple[NonNegativeInt, PositiveInt, NonNegativeInt, PositiveInt]  # top, bottom, left, right


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
