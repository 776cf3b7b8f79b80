"""What goes wrong in a network's answer, beside what `dicomai.errors` has."""

from typing import ClassVar

from dicomai.errors import InferenceError


class UnusableAnswerError(InferenceError):
    """The network ran and its answer cannot be a result; the same images would give the same again."""

    retryable: ClassVar[bool] = False
