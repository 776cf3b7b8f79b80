"""What the parts of a bundle's `dicomai.toml` have in common: texts and codes that go into results."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydicom.sr.coding import Code


def _dicom_text(value: str) -> str:
    """Check a text that goes into results as LO: they bear the patient's character set, and ASCII fits into any."""
    if not (1 <= len(value) <= 64 and value.isascii() and value.isprintable() and "\\" not in value):
        raise ValueError(f"'{value}' is no text of 1 to 64 printable ASCII characters without a backslash")
    return value


def _code(value: Code) -> Code:
    if not (value.value.strip() and value.scheme_designator.strip() and value.meaning.strip()):
        raise ValueError("a code is [value, scheme designator, meaning], none of them empty")
    _dicom_text(value.meaning)
    return value


DicomText = Annotated[str, AfterValidator(_dicom_text)]
CodedConcept = Annotated[Code, AfterValidator(_code)]
Channel = Annotated[int, Field(ge=0)]
"""Of a network's answer, from 0 as in `channel_def` of MONAI's metadata.json."""


class Part(BaseModel):
    """A table of `dicomai.toml`: it does not change, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
