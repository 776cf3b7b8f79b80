"""The web page that says at a glance what the node is doing and changes nothing; DICOMweb beside it where it is on."""

from dicomai.console.server import Console

__all__ = ["Console"]
