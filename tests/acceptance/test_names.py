"""No name in a log: every node of these tests is looked through for the people whose images were sent (`node`)."""

from pathlib import Path

import pytest

from tests.acceptance.node import PEOPLE, Node


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("line", ['{{"error": "PN {} is odd"}}', "Traceback: b'{}'", "{}", "x={}, y"])
def test_a_name_in_a_log_would_be_found(person: str, line: str, tmp_path: Path) -> None:
    one = Node(tmp_path, 1)
    (tmp_path / "node.log").write_text('{"event": "node started"}\n', encoding="utf-8")
    one.refuse_names()
    (tmp_path / "node.log").write_text(f'{{"event": "node started"}}\n{line.format(person)}\n', encoding="utf-8")
    with pytest.raises(AssertionError, match="in the log"):
        one.refuse_names()
