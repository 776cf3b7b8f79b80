"""The way in from scanners and PACS: Verification SCP and Storage SCP (PS3.4 Annexes A and B)."""

from dicomai.receiver.ports import Intake
from dicomai.receiver.scp import Receiver, serve

__all__ = ["Intake", "Receiver", "serve"]
