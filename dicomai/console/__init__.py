"""The web page that says at a glance what the node is doing. It shows; it changes nothing."""

from dicomai.console.server import Console

__all__ = ["Console"]
