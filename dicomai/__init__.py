"""An AI node for a hospital's PACS: studies in by C-STORE, DICOM SEG and SR back."""

__version__ = "0.1.0"
