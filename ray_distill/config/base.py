"""What all sections of a configuration share: they are strict, and they say what is wrong."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

MAX_COUNT = 2**31
"""Of anything that is counted: the streams of random numbers count in 32 bits (`core.rng`)."""
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**53)]
"""What JSON keeps as it is wherever it is read."""
Size = Annotated[int, Field(gt=0, le=2**16)]
"""Of what is held whole: the side of an image, the width of a layer."""
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Frozen; no unknown keys; no silent conversion of types (an int is accepted for a float)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def invalid(message: str) -> PydanticCustomError:
    """The error to raise for a value that cannot be, with what is allowed."""
    # The value that was found is added where the error is printed; braces would be taken as a template.
    return PydanticCustomError("impossible", "{message}", {"message": message})


def sibling(info: ValidationInfo, name: str) -> Any:
    """A sibling field that was validated before this one; None if it was itself wrong."""
    return info.data.get(name)
