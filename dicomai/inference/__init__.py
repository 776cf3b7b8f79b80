"""Bundle + Volume -> Findings. With training the only importer of torch and MONAI.

A bundle's `inference.json` may name `dicomai.inference.LocateThenSegment` as its inferer.
"""

from dicomai.inference.check import check
from dicomai.inference.engine import Engine, describe_device, load
from dicomai.inference.errors import UnusableAnswerError
from dicomai.inference.locate import LocateThenSegment

__all__ = ["Engine", "LocateThenSegment", "UnusableAnswerError", "check", "describe_device", "load"]
