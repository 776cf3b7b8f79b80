"""The section of the configuration that lets images go on."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from dicomai.config.sections import Name, Names, Patterns, Section, each_once
from dicomai.forwarding import Deidentify, Retain


class ForwardSettings(Section):
    """`[[forward]]`: which of the images that came go on, and where to."""

    name: Name
    match: Patterns = Field(default_factory=dict)
    exclude: Patterns = Field(default_factory=dict)
    destinations: Names = ()
    deidentify: Deidentify = Deidentify.NONE
    retain: Annotated[tuple[Retain, ...], AfterValidator(each_once)] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.retain and self.deidentify is Deidentify.NONE:
            raise ValueError("retain says what de-identification leaves: set deidentify = 'basic', or leave it out")
        if {Retain.FULL_DATES, Retain.MODIFIED_DATES} <= set(self.retain):
            raise ValueError("dates are kept or moved, not both: retain 'full-dates' or 'modified-dates'")
        return self
