"""An AI node for a hospital's PACS: studies in by C-STORE, DICOM SEG and SR back."""

__version__ = "0.1.0"

# How the implementation names itself on the wire and in files (PS3.7 D.3.3.2); the UID was made once from a UUID.
IMPLEMENTATION_CLASS_UID = "2.25.212570732527201467633270629263002747987"
IMPLEMENTATION_VERSION_NAME = f"DICOMAI_{__version__}"[:16]
