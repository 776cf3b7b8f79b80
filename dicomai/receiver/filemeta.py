"""File meta information for a received data set (PS3.10 7.1), which itself stays as it came."""

from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


def file_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str) -> bytes:
    """Encode what comes before the data set in a DICOM file: preamble, prefix, file meta information.

    Args:
        sop_class_uid: Affected SOP Class UID of the C-STORE request.
        sop_instance_uid: Affected SOP Instance UID of the C-STORE request, well-formed or not.
        transfer_syntax_uid: that of the accepted presentation context.
        source_ae: the calling AE title.
    """
    meta = FileMetaDataset()
    for tag, vr, value in (
        (0x00020002, "UI", sop_class_uid),
        (0x00020003, "UI", sop_instance_uid),
        (0x00020010, "UI", transfer_syntax_uid),
        (0x00020012, "UI", IMPLEMENTATION_CLASS_UID),
        (0x00020013, "SH", IMPLEMENTATION_VERSION_NAME),
        (0x00020016, "AE", source_ae),
    ):
        # Scanners send UIDs that break PS3.5 9.1; whether they can be stored is the intake's question.
        meta[tag] = DataElement(tag, vr, value, validation_mode=IGNORE)
    buffer = DicomBytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()
