"""De-identification by the Basic Application Level Confidentiality Profile (PS3.15 E.2), with what is retained of it.

The same input gives the same output wherever and whenever it comes through one node: UIDs and pseudonyms are made from
the originals with a secret key, so that a study stays one study, a reference refers, and a later image joins the
others, while nobody without the key can go back by trying names.
"""

import hmac
import re
import uuid
from datetime import date, timedelta
from typing import BinaryIO

import pydicom
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

import dicomai
from dicomai.deidentification import pixeldata
from dicomai.deidentification.table import ACTIONS, EDITION
from dicomai.errors import NotAcceptedError
from dicomai.forwarding import Retain
from dicomai.outputs.common import code_item
from dicomai.study import Identity

__all__ = ["Deidentifier", "refusal"]

_OPTIONS = {
    Retain.PATIENT_CHARACTERISTICS: codes.cid7050.RetainPatientCharacteristicsOption,
    Retain.FULL_DATES: codes.cid7050.RetainLongitudinalTemporalInformationFullDatesOption,
    Retain.MODIFIED_DATES: codes.cid7050.RetainLongitudinalTemporalInformationModifiedDatesOption,
}

# What the Retain Patient Characteristics Option keeps (Table E.1-1); what it would only have cleaned is removed.
_CHARACTERISTICS = frozenset(
    int(Tag(keyword))
    for keyword in (
        "EthnicGroup", "EthnicGroupCodeSequence", "PatientAge", "PatientSex", "PatientSexNeutered", "PatientSize",
        "PatientWeight", "PregnancyStatus", "SmokingStatus",
    )
)  # fmt: skip

# The temporal attributes that no option keeps (Table E.1-1), and the one that is kept with them as it is.
_NEVER_KEPT = frozenset(int(Tag(keyword)) for keyword in ("PatientBirthDate", "PatientBirthTime", "GPSTimeStamp"))
_TIME_ZONE = int(Tag("TimezoneOffsetFromUTC"))
_TEMPORAL = frozenset({"DA", "DT", "TM"})
_LONGEST_SHIFT = 3650  # days
_FORMS = {  # PS3.5 6.2, and the older forms of a date and a time
    "DA": re.compile(r"\d{8}|\d{4}\.\d\d\.\d\d"),
    "DT": re.compile(r"\d{4}(\d\d){0,5}(\.\d{1,6})?([+-]\d{4})?"),
    "TM": re.compile(r"\d\d(:?\d\d(:?\d\d(\.\d{1,6})?)?)?"),
}
_ZONE = re.compile(r"[+-]\d{4}$")  # at the end of a DT

_CURVES, _OVERLAYS = 0x5000, 0x6000  # repeating groups (PS3.5 7.6)

# UIDs that the table does not have and that name a kind of thing, not a thing; all others that it lacks are replaced.
_KINDS = frozenset(
    int(Tag(keyword))
    for keyword in (
        "CodingSchemeUID", "ContextGroupExtensionCreatorUID", "ContextUID", "EncryptedContentTransferSyntaxUID",
        "MACCalculationTransferSyntaxUID", "MappingResourceUID", "OriginalSpecializedSOPClassUID",
        "ReferencedSOPClassUID", "RelatedGeneralSOPClassUID", "SOPClassUID", "SOPClassesInStudy", "SOPClassesSupported",
    )
)  # fmt: skip

# What the table lacks although it says what other rows of it take away: dates, who issued a number, the original.
_ALSO_REMOVED = frozenset(
    int(Tag(keyword))
    for keyword in (
        "EncryptedAttributesSequence", "IssuerOfAccessionNumberSequence", "IssuerOfPatientIDQualifiersSequence",
        "OrderFillerIdentifierSequence", "OrderPlacerIdentifierSequence", "PatientAlternativeCalendar",
        "PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar",
    )
)  # fmt: skip
_CODING_SCHEME_URL = int(Tag("CodingSchemeURL"))

_TEXT, _NUMBER = "REMOVED", 0
_DUMMIES = {
    "AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "DS": "0", "IS": "0",
    "UR": "urn:removed", "FD": _NUMBER, "FL": _NUMBER, "SL": _NUMBER, "SS": _NUMBER, "SV": _NUMBER, "UL": _NUMBER,
    "US": _NUMBER, "UV": _NUMBER, "OB": b"\0\0", "OW": b"\0\0", "OD": b"\0" * 8, "OF": b"\0" * 4, "OL": b"\0" * 4,
    "OV": b"\0" * 8, "UN": b"\0\0",
}  # fmt: skip

# Ultrasound, secondary captures, photographs (VL): a name in the pixels is the rule there.
_ANNOTATED_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.3.", "1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.6",
    "1.2.840.10008.5.1.4.1.1.6.", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.",
    "1.2.840.10008.5.1.4.1.1.77.1.",
)  # fmt: skip
_ANNOTATED_MODALITIES = frozenset(
    {
        "BDUS", "BMD", "DMS", "DOC", "DOCD", "ECG", "EPS", "ES", "GM", "HD", "IVUS", "OP", "OT", "PX", "SC", "SM", "US",
        "XC",
    }
)  # fmt: skip
_ANNOTATED_KINDS = ("SCREEN", "CAPTURE", "SAVE", "REPORT", "PROT", "DOSE_INFO")  # in Image Type


def refusal(ds: Dataset, *, is_image: bool) -> str:
    """Say why an instance cannot be de-identified without a look at it; empty where it can.

    Args:
        ds: its attributes; pixels are not looked at.
        is_image: see `study.is_image`.
    """
    if not is_image:
        return "what is no image, such as a report or a presentation state, may name the patient anywhere in its text"
    burned_in = str(ds.get("BurnedInAnnotation") or "").strip().upper()
    if burned_in == "YES":
        return "BurnedInAnnotation is YES, so the patient's name may stand in the pixels"
    if burned_in != "NO" and _is_usually_annotated(ds):
        return (
            "an ultrasound image, secondary capture, screen, page or photograph that does not say BurnedInAnnotation NO"
            " may show the patient's name or face"
        )
    for group in range(_OVERLAYS, _OVERLAYS + 0x20, 2):
        if any((group, element) in ds for element in (0x0010, 0x0100, 0x0102)) and (group, 0x3000) not in ds:
            return f"the overlay of group {group:04X} lies in the pixels and may hold text"
    return ""


def _is_usually_annotated(ds: Dataset) -> bool:
    kinds = [str(kind).upper() for kind in _values(ds.get("ImageType"))]
    sop_class = str(ds.get("SOPClassUID") or "")
    return (
        any(sop_class == known or (known.endswith(".") and sop_class.startswith(known)) for known in _ANNOTATED_CLASSES)
        or str(ds.get("Modality") or "").strip().upper() in _ANNOTATED_MODALITIES
        or bool(ds.get("ConversionType"))  # of secondary capture equipment (PS3.3 C.8.6.1)
        or any(word in kind for kind in kinds for word in _ANNOTATED_KINDS)
        or ds.get("SamplesPerPixel") == 3  # no scanner's image is in colour: rendered, fused, or a page
    )


class Deidentifier:
    """De-identifies images."""

    def __init__(self, secret: bytes, retain: frozenset[Retain]) -> None:
        """Make one.

        Args:
            secret: the key of UIDs, pseudonyms and shifts.
            retain: what stays.
        """
        # What is de-identified in another way is other objects, of other pseudonyms: side by side they tell the shift.
        self._secret = hmac.digest(secret, "|".join(sorted(retain)).encode(), "sha256")
        self._retain = retain

    def read(self, stream: BinaryIO, *, is_image: bool) -> FileDataset:
        """Read an instance and de-identify it.

        Args:
            stream: a DICOM file.
            is_image: see `study.is_image`.

        Returns:
            Another instance, of another study, in the same transfer syntax.

        Raises:
            NotAcceptedError: it cannot be de-identified, see `refusal`; the text is a clause.
            OSError, ValueError and the like: it cannot be read, see `study.UNREADABLE`.
        """
        ds = pydicom.dcmread(stream)
        why = refusal(ds, is_image=is_image)
        if why:
            raise NotAcceptedError(why)
        identity = Identity.of(ds)
        whose = f"{identity.issuer_of_patient_id}\0{identity.patient_id}"
        if "\ufffd" in whose:  # or two people would get one pseudonym
            raise NotAcceptedError("its Patient ID, or its issuer, is not of the character set that it says")
        if not identity.patient_id:  # nothing says that two studies are of one patient
            whose = f"study\0{ds.get('StudyInstanceUID')}"
        _Cleaning(self, whose, is_enhanced="SharedFunctionalGroupsSequence" in ds).clean(ds)
        pixeldata.strip(ds, ds.file_meta.TransferSyntaxUID)
        pseudonym = self._digest("patient", whose).hex()[:16].upper()
        ds.PatientID = ds.PatientName = pseudonym
        self._say_so(ds)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = ds.SOPClassUID
        meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID
        meta.ImplementationClassUID = UID(dicomai.IMPLEMENTATION_CLASS_UID)
        ds.file_meta, ds.preamble = meta, b"\0" * 128
        return ds

    @property
    def retain(self) -> frozenset[Retain]:
        """What stays."""
        return self._retain

    def uid(self, uid: str) -> str:
        """Give the UID that stands for another, always the same; what the standard itself has named stays."""
        if not uid or UID(uid, validation_mode=IGNORE).type:  # the registry (PS3.6 Annex A)
            return uid
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def shift(self, whose: str) -> timedelta:
        """Say by how much a patient's dates are moved: 1 to 3650 days into the past."""
        number = int.from_bytes(self._digest("dates", whose)[:8], "big")
        return timedelta(days=-1 - number % _LONGEST_SHIFT)

    def _digest(self, what: str, value: str) -> bytes:
        return hmac.digest(self._secret, f"{what}\0{value}".encode(), "sha256")

    def _say_so(self, ds: Dataset) -> None:
        """Write how it was done (PS3.3 C.12.1.1.1.1, C.7.1.1)."""
        options = [code for option, code in _OPTIONS.items() if option in self._retain]
        ds.PatientIdentityRemoved = "YES"
        # What was done to it before it came here stays true, and stays said.
        method = f"dicomai {dicomai.__version__}, PS3.15 {EDITION} Basic Profile"[:64]
        ds.DeidentificationMethod = [
            *(one for one in _values(ds.get("DeidentificationMethod")) if one != method),
            method,
        ]
        ours = [code_item(code) for code in (codes.cid7050.BasicApplicationConfidentialityProfile, *options)]
        earlier = ds.get("DeidentificationMethodCodeSequence") or []
        ds.DeidentificationMethodCodeSequence = [*(one for one in earlier if one not in ours), *ours]
        if Retain.FULL_DATES in self._retain:
            ds.LongitudinalTemporalInformationModified = (
                ds.get("LongitudinalTemporalInformationModified") or "UNMODIFIED"
            )
        else:
            dates = "MODIFIED" if Retain.MODIFIED_DATES in self._retain else "REMOVED"
            ds.LongitudinalTemporalInformationModified = dates


class _Cleaning:
    """Goes through one instance."""

    def __init__(self, deidentifier: Deidentifier, whose: str, *, is_enhanced: bool) -> None:
        self._deidentifier = deidentifier
        self._retain = deidentifier.retain
        self._shift = deidentifier.shift(whose)
        self._is_enhanced = is_enhanced

    def clean(self, ds: Dataset, *, is_nested: bool = False) -> None:
        """Do with each attribute, and with those nested in it, what the profile says."""
        for tag in list(ds.keys()):
            vr = _vr(ds, tag)
            if vr is None or tag.element == 0 or _in_removed_group(tag):
                del ds[tag]
                continue
            action = self._action(tag, vr)
            if action == "K":
                if vr == "SQ":
                    self._clean_items(ds, tag)
            elif vr == "SQ":
                self._clean_sequence(ds, tag, action)
            elif action == "U" or (vr == "UI" and "D" in action):  # a dummy that is the same for the same one
                uids = [self._deidentifier.uid(str(uid).strip()) for uid in _values(ds[tag].value)]
                ds[tag] = DataElement(tag, "UI", uids if len(uids) != 1 else uids[0])
            elif action == "keep":
                if not all(_FORMS[vr].fullmatch(str(one).strip()) for one in _values(ds[tag].value)):
                    self._replace(ds, tag, vr, ACTIONS[int(tag)], is_nested=is_nested)
            elif action == "shift":
                self._move(ds, tag, vr, is_nested=is_nested)
            else:
                self._replace(ds, tag, vr, action, is_nested=is_nested)

    def _action(self, tag: BaseTag, vr: str) -> str:
        """Look an attribute up; K for what is kept, "keep" for a date or time that is kept if it is one."""
        known = ACTIONS.get(int(tag))
        if Retain.PATIENT_CHARACTERISTICS in self._retain and int(tag) in _CHARACTERISTICS:
            return "K"
        if vr in _TEMPORAL and int(tag) not in _NEVER_KEPT and known is not None:
            if Retain.FULL_DATES in self._retain:
                return "keep"
            if Retain.MODIFIED_DATES in self._retain:
                return "keep" if vr == "TM" else "shift"
        if int(tag) == _TIME_ZONE and Retain.FULL_DATES in self._retain:
            return "K"
        if known is None:  # a name or a date that the table does not have is none that it lets pass
            return _unknown_to_the_table(tag, vr)
        return known

    def _clean_items(self, ds: Dataset, tag: BaseTag) -> None:
        items = ds[tag].value
        if not isinstance(items, Sequence):
            raise NotAcceptedError(f"its sequence {tag} is written as unknown bytes (UN) and cannot be read")
        for item in items:
            self.clean(item, is_nested=True)

    def _clean_sequence(self, ds: Dataset, tag: BaseTag, action: str) -> None:
        if action == "X/Z/U*":  # references to images, which still refer
            self._clean_items(ds, tag)
        elif "Z" in action:
            ds[tag] = DataElement(tag, "SQ", [])
        else:  # an item of dummies would say nothing
            del ds[tag]

    def _move(self, ds: Dataset, tag: BaseTag, vr: str, *, is_nested: bool) -> None:
        moved = []
        for value in _values(ds[tag].value):
            text = str(value).strip()
            try:
                day: date | None = date(int(text[:4]), int(text[4:6]), int(text[6:8])) + self._shift
            except (ValueError, OverflowError):  # no date, or a year alone: what cannot be moved does not stay
                day = None
            if day is None or not _FORMS[vr].fullmatch(text):
                self._replace(ds, tag, vr, ACTIONS[int(tag)], is_nested=is_nested)
                return
            moved.append(f"{day:%Y%m%d}{_ZONE.sub('', text[8:])}")
        ds[tag] = DataElement(tag, vr, moved if len(moved) != 1 else moved[0])

    def _replace(self, ds: Dataset, tag: BaseTag, vr: str, action: str, *, is_nested: bool) -> None:
        """Remove, empty, or put a dummy in place: what keeps the object conformant, by the choice that the table gives.

        Dates that may go, go, but in enhanced objects and in items, where they may have to be.
        """
        may_need = self._is_enhanced or is_nested or vr not in _TEMPORAL
        if action == "X" or (action in {"X/D", "X/Z/D"} and not may_need):
            del ds[tag]
        elif action in {"Z", "X/Z"}:
            ds[tag] = DataElement(tag, vr, None)
        else:
            ds[tag] = DataElement(tag, vr, _DUMMIES.get(vr, _TEXT))


def _vr(ds: Dataset, tag: BaseTag) -> str | None:
    """Say what an attribute is by the standard's dictionary; None where that does not know it, or is contradicted."""
    try:
        known = dictionary_VR(tag)
    except KeyError:
        return None
    found = ds.get_item(tag)
    vr = str(found.VR) if found is not None and found.VR else known  # implicit VR has none
    if "SQ" in {vr, known}:  # as UN it is read as what it is
        return "SQ" if vr in {"SQ", "UN"} and known == "SQ" else None
    return known.split(" or ")[0]


def _unknown_to_the_table(tag: BaseTag, vr: str) -> str:
    """Say what is done with an attribute that the table does not have: a name, date, address or UID does not pass."""
    if vr == "UI":
        return "K" if int(tag) in _KINDS else "U"
    is_address = vr == "UR" and int(tag) != _CODING_SCHEME_URL
    return "X" if vr == "PN" or vr in _TEMPORAL or is_address or int(tag) in _ALSO_REMOVED else "K"


def _in_removed_group(tag: BaseTag) -> bool:
    return tag.is_private or tag.group & 0xFF00 in {_CURVES, _OVERLAYS}


def _values(value: object) -> list[object]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]
