"""What all sections of a configuration share: strictness, common types, and errors that name what is allowed."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from ray_distill.utils.secrets import holds_password

MAX_COUNT = 2**31
"""Of anything that is counted: the streams of random numbers count in 32 bits (`core.rng`)."""
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**53)]
"""Up to the largest integer that every JSON reader keeps exactly."""
Size = Annotated[int, Field(gt=0, le=2**16)]
"""The side of an image or the width of a layer."""
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Frozen; no unknown keys; no silent type conversion (except from int to float)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def invalid(message: str, *, show_value: bool = True) -> PydanticCustomError:
    """The error to raise for a value that is not allowed; `load` puts the key before it, and the value behind it."""
    # As a parameter, since braces in the message itself would be read as a template.
    return PydanticCustomError("invalid" if show_value else "hidden", "{message}", {"message": message})


def sibling(info: ValidationInfo, name: str) -> Any:
    """The value of a field that is declared before this one; None if it was invalid."""
    return info.data.get(name)


def only_if(applies: bool, needs: str, value: Any, default: Any) -> Any:
    """An option of one mode: its default in that mode, None in the others, where a value is an error."""
    if value is not None and not applies:
        raise invalid(f"has no effect unless {needs}; remove it")
    return default if applies and value is None else value


STORE_CREDENTIALS = "environment variables such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def without_password(value: str | None, credentials: str = STORE_CREDENTIALS) -> str | None:
    """The value, refused (and not shown) if it is a URI with a password; `credentials`: where they belong."""
    if value is not None and holds_password(value):
        raise invalid(
            f"contains a password, but configurations are saved and shared; put credentials in {credentials}",
            show_value=False,
        )
    return value
