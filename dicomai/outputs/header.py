"""Whose result it is: the patient's and the study's attributes, as received; character set and time zone with them.

Values travel as the bytes that were received wherever that is possible, so that a name that breaks the standard, but
that the PACS lives with, arrives as it was sent.
"""

import copy
import re
import unicodedata
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import cast

from highdicom._standard_utils import get_module_attribute_map  # the modules of PS3.3 are nowhere else to be had
from pydicom.charset import convert_encodings, encode_string
from pydicom.config import IGNORE, RAISE
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, STANDARD_VR, STR_VR, validate_value

from dicomai.errors import IdentityError
from dicomai.outputs import priors

# PS3.3: C.7.1.1, C.7.2.1, C.7.2.2, C.7.1.3, C.7.2.3.
_MODULES = ("patient", "general-study", "patient-study", "clinical-trial-subject", "clinical-trial-study")
# Type 2: there, if only empty.
_REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
)  # fmt: skip
_FORMED = frozenset({"AS", "CS", "DA", "DS", "DT", "IS", "TM"})  # whose values are more than any text
_CHARACTER_SET = 0x00080005
_UTF8 = "ISO_IR 192"
# Many items, and no text of ours but codes in ASCII: not worth a walk.
_TEXTLESS = frozenset({0x52009230, 0x52009229, 0x00081115, 0x00082112, 0x0040A375, 0x00209222, 0x30060039})
_OWN_TIMES = (
    ("InstanceCreationDate", "InstanceCreationTime"),
    ("SeriesDate", "SeriesTime"),
    ("ContentDate", "ContentTime"),
)
_MAY_HOLD_TEXT = frozenset({*CUSTOMIZABLE_CHARSET_VR, "SQ", "UN"})
_TIMES_OF_SOME = (
    ("StructureSetDate", "StructureSetTime"),
    ("PresentationCreationDate", "PresentationCreationTime"),
)


def restate(ds: Dataset, newest: Dataset, *, prior_holds: bool = True) -> Dataset:
    """Give a result the patient's and the study's attributes of the newest instance; all else stays.

    `build` ends with this; it is done again before the first send, when the PACS has corrected the patient meanwhile.

    Args:
        ds: a result object; it is left as it is.
        newest: the newest instance of its sources.
        prior_holds: the earlier result still holds that it compares with, if it does; else that is taken out.

    Raises:
        IdentityError: the newest instance lies in another study.
    """
    if str(newest.get("StudyInstanceUID", "")) != str(ds.StudyInstanceUID):
        raise IdentityError(
            f"The result belongs to study {ds.StudyInstanceUID}, but its newest source image to study"
            f" {newest.get('StudyInstanceUID', '(none)')}: decide by hand where it goes."
        )
    made = _shallow(ds)
    if priors.no_longer_holds(ds, newest):
        priors.forget(made)
    elif not prior_holds:
        priors.forget(made, is_gone=True)
    for tag in list(made.keys()):
        if _describes_patient_or_study(tag):
            del made[tag]
    _follow_zone(made, newest)
    inherited = _inherit(newest)
    _settle_character_set(made, inherited, newest)
    for element in inherited.values():
        made[element.tag] = element
    for keyword in _REQUIRED:
        if keyword not in made:
            setattr(made, keyword, None)
    # Says that raw bytes among the elements are in the data set's own encoding: they are then written as they are.
    made.set_original_encoding(False, True, made._character_set)
    return made


def zone(newest: Dataset) -> timezone | None:
    """Give the time zone of an instance's dates and times; None where it does not say, or says it unreadably.

    TimezoneOffsetFromUTC (0008,0201), '&ZZXX' (PS3.3 C.12.1.1.8).
    """
    found = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(newest.get("TimezoneOffsetFromUTC") or "").strip())
    if found is None:
        return None
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-offset if found[1] == "-" else offset) if offset <= timedelta(hours=14) else None


def stamp(ds: Dataset, moment: datetime) -> None:
    """Write the dates and times of a result itself (not of its study).

    Args:
        ds: the result.
        moment: in the zone that the result's times are in.
    """
    for date, time in (*_OWN_TIMES, *(pair for pair in _TIMES_OF_SOME if pair[0] in ds)):
        setattr(ds, date, moment.strftime("%Y%m%d"))
        setattr(ds, time, moment.strftime("%H%M%S"))
    for item in ds.get("ContributingEquipmentSequence") or ():
        item.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S")


def _follow_zone(made: Dataset, newest: Dataset) -> None:
    """Take the newest instance's time zone, and move the result's own times where theirs was another.

    Times without a zone are the hospital's, and so are the newest instance's: where a zone appears or goes, they stay.
    """
    before, after = zone(made), zone(newest)
    if after is None:
        made.pop("TimezoneOffsetFromUTC", None)
        return
    if before is not None and before != after:
        moment = datetime.strptime(f"{made.ContentDate}{made.ContentTime}", "%Y%m%d%H%M%S").replace(tzinfo=before)
        made.ContributingEquipmentSequence = copy.deepcopy(made.get("ContributingEquipmentSequence") or [])
        stamp(made, moment.astimezone(after))
    made.TimezoneOffsetFromUTC = str(newest.TimezoneOffsetFromUTC).strip()


@cache
def _optional_tags() -> frozenset[int]:
    needed = {*map(tag_for_keyword, _REQUIRED), tag_for_keyword("StudyInstanceUID")}
    return frozenset(tag for tag in _module_tags() if tag not in needed)


@cache
def _module_tags() -> frozenset[int]:
    table = get_module_attribute_map()
    keywords = (item["keyword"] for module in _MODULES for item in table[module] if not item["path"])
    return frozenset(tag for tag in map(tag_for_keyword, keywords) if tag is not None)


def _describes_patient_or_study(tag: int) -> bool:
    # All of group 0010 is the patient's, what the standard has retired or added lately too.
    return tag >> 16 == 0x0010 or tag in _module_tags()


def _shallow(ds: Dataset) -> Dataset:
    """Copy a data set's top level; elements are shared, and never changed in place."""
    made = Dataset()
    for tag in list(ds.keys()):
        made[tag] = ds.get_item(tag)
    implicit, little = ds.original_encoding
    made.set_original_encoding(implicit, little, ds.original_character_set)
    made.file_meta = copy.deepcopy(ds.file_meta)
    made.preamble = bytes(128)
    return made


def _inherit(newest: Dataset) -> dict[int, DataElement | RawDataElement]:
    """Take the patient's and the study's attributes; text as the bytes received, where they still are there."""
    taken: dict[int, DataElement | RawDataElement] = {}
    for tag in list(newest.keys()):
        if not _describes_patient_or_study(tag) or tag.is_private or tag.element == 0:
            continue
        element = cast("DataElement | RawDataElement", newest.get_item(tag))
        if isinstance(element, RawDataElement):
            element = _as_received(element) or newest[tag]
        if tag in _optional_tags() and not _is_well_formed(element):
            continue  # a strict PACS would refuse the whole result for it
        taken[tag] = copy.deepcopy(element)
    return taken


def _is_well_formed(element: DataElement | RawDataElement) -> bool:
    """Tell whether a value has the form that its VR prescribes, such as '042Y' for an age (PS3.5 6.2)."""
    vr, value = str(element.VR), element.value
    if (vr == "SQ") != (dictionary_VR(element.tag) == "SQ"):
        return False  # a text where a sequence should be
    if vr not in _FORMED or not value:
        return True
    text = value.decode("latin-1") if isinstance(value, bytes) else "\\".join(_texts(cast("DataElement", element)))
    try:
        for one in text.rstrip("\0 ").split("\\"):
            validate_value(vr, one.strip(" "), RAISE)
    except ValueError:
        return False
    return True


def _as_received(raw: RawDataElement) -> RawDataElement | None:
    """Give text as it was sent: the same bytes in any transfer syntax. None where it is not known to be text."""
    vr = raw.VR
    if vr in (None, "UN") and dictionary_has_tag(raw.tag):
        vr = dictionary_VR(raw.tag)
    if vr is None or vr not in STR_VR or raw.value is None or raw.length == 0xFFFFFFFF:
        return None
    return raw._replace(VR=vr, value=_padded(raw.value, vr))


def _padded(value: bytes, vr: str) -> bytes:
    """Pad as the standard does (PS3.5 6.2), so that it is of no account whether a value has been looked at before."""
    bare = value.rstrip(b"\0 ")
    return bare + (b"\0" if vr == "UI" else b" ") * (len(bare) % 2)


def _settle_character_set(made: Dataset, inherited: dict[int, DataElement | RawDataElement], newest: Dataset) -> None:
    """Choose SpecificCharacterSet (0008,0005) so that both the patient's text and ours can be written.

    The source's, where our text fits in; else UTF-8, where the patient's text can be read without loss; else the
    source's, and our text in ASCII: the patient's name comes first.
    """
    given = newest.get("SpecificCharacterSet") or None
    # Looking at our text also decodes it, where the result was read from a file in another set.
    if not all(_fits(text, given) for text in _own_text(made)):
        if _to_unicode(inherited, newest):
            given = _UTF8
        else:
            _spell_in_ascii(made)
    if given is None:
        made.pop(_CHARACTER_SET, None)
    else:
        value = given if isinstance(given, str) else list(given)
        made[_CHARACTER_SET] = DataElement(_CHARACTER_SET, "CS", value, validation_mode=IGNORE)


def _text_elements(ds: Dataset) -> Iterator[DataElement]:
    for tag in list(ds.keys()):
        vr = ds.get_item(tag).VR
        if tag in _TEXTLESS or (vr in STANDARD_VR and vr not in _MAY_HOLD_TEXT):
            continue  # numbers are not parsed only to be passed over
        element = ds[tag]
        if element.VR == "SQ":
            for item in element.value:
                yield from _text_elements(item)
        elif element.VR in CUSTOMIZABLE_CHARSET_VR and element.value:
            yield element


def _texts(element: DataElement) -> tuple[str, ...]:
    value = element.value
    return tuple(map(str, value)) if isinstance(value, MultiValue | list | tuple) else (str(value),)


def _own_text(made: Dataset) -> set[str]:
    """Find our own text outside ASCII: the patient's and the study's is not there yet."""
    return {text for element in _text_elements(made) for text in _texts(element) if not text.isascii()}


def _fits(text: str, character_set: str | list[str] | None) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            encodings = convert_encodings(character_set) if character_set else ["ascii"]
            encode_string(text, encodings if isinstance(encodings, list) else [encodings])
        except (UserWarning, UnicodeError, LookupError):
            return False
    return True


def _to_unicode(inherited: dict[int, DataElement | RawDataElement], newest: Dataset) -> bool:
    """Turn inherited text into characters; leave it and say no where that would lose some."""
    decoded = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the patient's name; what they warn of is looked for below
        for tag in inherited:
            decoded[tag] = copy.deepcopy(newest[tag])
        texts = [text for element in _text_elements(decoded) for text in _texts(element)]
    if not newest.get("SpecificCharacterSet") and not all(text.isascii() for text in texts):
        return False
    if any("\ufffd" in text for text in texts):
        return False
    inherited.update({element.tag: element for element in decoded})
    return True


def _in_ascii(text: str) -> str:
    """Spell a text in ASCII; nothing that is lost leaves a blank at its end, which a reader would take for padding."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().strip() or "?"


def _spell_in_ascii(made: Dataset) -> None:
    for tag in list(made.keys()):
        if tag not in _TEXTLESS:
            made[tag] = copy.deepcopy(made[tag])
    for element in _text_elements(made):
        plain = [_in_ascii(text) for text in _texts(element)]
        if plain != list(_texts(element)):
            value = plain if len(plain) > 1 else plain[0]
            element.value = DataElement(element.tag, element.VR, value, validation_mode=IGNORE).value
