"""What is looked for at a source, and what it says it has."""

import re
from dataclasses import dataclass
from datetime import date

from dicomai.errors import ConfigurationError, UnreadableError
from dicomai.store import checked_uid

# PS3.5 6.2, VR SH, in the default repertoire; `*` and `?` are wild cards (PS3.4 C.2.2.2.4).
_ACCESSION = re.compile(r"[ !-)+->@-\[\]-~]{1,16}")
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")


@dataclass(frozen=True, slots=True)
class Query:
    """Which studies, and which of their series; exactly one of the first three names the studies.

    Attributes:
        study_instance_uid: of one study.
        accession_number: of one study or several.
        dates: first and last StudyDate.
        modality: of the series to be fetched; any where it is empty.
        description: a pattern that SeriesDescription fits as a whole, in any case; any where it is None.
    """

    study_instance_uid: str = ""
    accession_number: str = ""
    dates: tuple[date, date] | None = None
    modality: str = ""
    description: re.Pattern[str] | None = None

    @classmethod
    def of(
        cls,
        *,
        study: str | None = None,
        accession: str | None = None,
        dates: str | None = None,
        modality: str | None = None,
        description: str | None = None,
    ) -> "Query":
        """Make a query of what a person wrote.

        Raises:
            ConfigurationError: it names no studies, could match any, or is not well-formed.
        """
        if sum(value is not None for value in (study, accession, dates)) != 1:
            raise ConfigurationError("Say which studies to fetch by one of --study, --accession and --date.")
        return cls(
            study_instance_uid="" if study is None else _uid(study),
            accession_number="" if accession is None else _accession(accession),
            dates=None if dates is None else _range(dates),
            modality="" if modality is None else _modality(modality),
            description=None if description is None else _pattern(description),
        )

    @property
    def keys(self) -> dict[str, str]:
        """The matching keys at the level of studies (PS3.4 C.6.2.1)."""
        keys = {"ModalitiesInStudy": self.modality}
        if self.study_instance_uid:
            keys["StudyInstanceUID"] = self.study_instance_uid
        if self.accession_number:
            keys["AccessionNumber"] = self.accession_number
        if self.dates is not None:
            keys["StudyDate"] = "-".join(f"{day:%Y%m%d}" for day in self.dates)
        return keys

    def takes_study(self, study: "FoundStudy") -> bool:
        """Tell whether a study that a source gives is one that was asked for: some sources pass over keys."""
        if self.study_instance_uid:
            return study.study_instance_uid == self.study_instance_uid
        if self.accession_number:
            return study.accession_number == self.accession_number
        if self.dates is None or study.day is None:
            return False
        return self.dates[0] <= study.day <= self.dates[1]

    def takes_series(self, series: "FoundSeries") -> bool:
        """Tell whether a series is one that was asked for; an attribute that is missing fits nothing."""
        if self.modality and series.modality != self.modality:
            return False
        return self.description is None or bool(series.description and self.description.fullmatch(series.description))


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study, as the source describes it.

    Attributes:
        study_instance_uid: StudyInstanceUID (0020,000D), well-formed.
        accession_number: AccessionNumber (0008,0050).
        day: StudyDate (0008,0020); None where it is missing or no date.
    """

    study_instance_uid: str
    accession_number: str
    day: date | None


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """A series, as the source describes it.

    Attributes:
        series_instance_uid: SeriesInstanceUID (0020,000E), well-formed.
        modality: Modality (0008,0060).
        description: SeriesDescription (0008,103E); it is for matching alone, people write anything there.
        instances: NumberOfSeriesRelatedInstances (0020,1209), counted where the source does not give it.
    """

    series_instance_uid: str
    modality: str
    description: str
    instances: int


def day_of(text: str) -> date | None:
    """Read a DA value (PS3.5 6.2); None if it is none."""
    if not re.fullmatch(r"[0-9]{8}", text):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def _uid(text: str) -> str:
    try:
        return checked_uid(text, "StudyInstanceUID")
    except UnreadableError:
        raise ConfigurationError(
            f"--study {text!a} is no UID: write digits and dots, at most 64, without wild cards."
        ) from None


def _accession(text: str) -> str:
    value = text.strip()
    if not value or not _ACCESSION.fullmatch(value):
        raise ConfigurationError(
            "--accession takes one accession number: 1 to 16 printable ASCII characters, none of them * ? or \\."
        )
    return value


def _range(text: str) -> tuple[date, date]:
    first, dash, last = text.partition("-")
    days = day_of(first), day_of(last if dash else first)
    if days[0] is None or days[1] is None or days[0] > days[1]:
        raise ConfigurationError(
            f"--date {text!a} is no range of days: write 20260101-20260131, or 20260101 for one day."
        )
    return days[0], days[1]


def _modality(text: str) -> str:
    value = text.strip().upper()
    if not value or not _MODALITY.fullmatch(value):
        raise ConfigurationError(f"--modality {text!a} is no modality, such as MR (PS3.3 C.7.3.1.1.1).")
    return value


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise ConfigurationError(f"--description {text!a} is no regular expression: {error}.") from error
