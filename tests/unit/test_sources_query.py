"""What `dicomai fetch` may ask for: never anything without a bound, never a wild card."""

from datetime import date

import pytest

from dicomai.errors import ConfigurationError
from dicomai.sources.query import FoundSeries, FoundStudy, Query

DAYS = Query.of(dates="20260101-20260131")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "Say which studies"),
        ({"modality": "MR"}, "Say which studies"),
        ({"study": "1.2", "dates": "20260101"}, "Say which studies"),
        ({"study": ""}, "--study"),
        ({"study": "1.2.*"}, "--study"),
        ({"study": "1.2\\1.3"}, "--study"),
        ({"accession": ""}, "--accession"),
        ({"accession": "*"}, "--accession"),
        ({"accession": "A?"}, "--accession"),
        ({"accession": "A1\\A2"}, "--accession"),
        ({"accession": "A" * 17}, "--accession"),
        ({"accession": "A\n1"}, "--accession"),
        ({"dates": ""}, "--date"),
        ({"dates": "-"}, "--date"),
        ({"dates": "20260101-"}, "--date"),
        ({"dates": "-20260101"}, "--date"),
        ({"dates": "20260230"}, "--date"),
        ({"dates": "2026010"}, "--date"),
        ({"dates": "20260102-20260101"}, "--date"),
        ({"dates": "20260101-20260131-20260201"}, "--date"),
        ({"dates": "20260101", "modality": "*"}, "--modality"),
        ({"dates": "20260101", "modality": ""}, "--modality"),
        ({"dates": "20260101", "description": "("}, "--description"),
    ],
)
def test_what_could_match_anything_is_refused(arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Query.of(**arguments)


def test_the_keys_that_are_sent() -> None:
    assert Query.of(study="1.2.03").keys == {"StudyInstanceUID": "1.2.03", "ModalitiesInStudy": ""}
    assert Query.of(accession=" A-1/2 ").keys == {"AccessionNumber": "A-1/2", "ModalitiesInStudy": ""}
    assert Query.of(dates="20260101", modality="mr").keys == {
        "StudyDate": "20260101-20260101",
        "ModalitiesInStudy": "MR",
    }


@pytest.mark.parametrize(
    ("query", "study", "taken"),
    [
        (DAYS, FoundStudy("1.2", "", date(2026, 1, 1)), True),
        (DAYS, FoundStudy("1.2", "", date(2026, 1, 31)), True),
        (DAYS, FoundStudy("1.2", "", date(2026, 2, 1)), False),
        (DAYS, FoundStudy("1.2", "", date(2025, 12, 31)), False),
        (DAYS, FoundStudy("1.2", "", None), False),
        (Query.of(study="1.2"), FoundStudy("1.2", "", None), True),
        (Query.of(study="1.2"), FoundStudy("1.2.3", "", None), False),
        (Query.of(accession="A1"), FoundStudy("1.2", "A1", None), True),
        (Query.of(accession="A1"), FoundStudy("1.2", "a1", None), False),
        (Query.of(accession="A1"), FoundStudy("1.2", "", None), False),
    ],
)
def test_a_source_that_passes_over_keys_is_found_out(query: Query, study: FoundStudy, taken: bool) -> None:
    assert query.takes_study(study) is taken


@pytest.mark.parametrize(
    ("series", "taken"),
    [
        (FoundSeries("1.2", "MR", "sag t1 MPRAGE", 1), True),
        (FoundSeries("1.2", "MR", "sag T1", 1), True),
        (FoundSeries("1.2", "MR", "T2", 1), False),
        (FoundSeries("1.2", "MR", "", 1), False),
        (FoundSeries("1.2", "", "T1", 1), False),
        (FoundSeries("1.2", "CT", "T1", 1), False),
    ],
)
def test_only_the_series_that_were_asked_for(series: FoundSeries, taken: bool) -> None:
    assert Query.of(study="1.2", modality="MR", description=".*t1.*").takes_series(series) is taken
