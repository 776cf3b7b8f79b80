"""The states of a workitem are those of UPS, and so are its transitions (PS3.4 CC.1.1)."""

import pytest

from dicomai.workitem import FINAL, TRANSITIONS, State, is_legal


def test_the_states_bear_the_names_of_the_standard() -> None:
    # Procedure Step State (0074,1000), PS3.3 C.30.1.
    assert {state.value for state in State} == {"SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"}
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_final_state_is_final(state: State) -> None:
    assert not any(is_legal(state, after) for after in State)


def test_scheduled_leads_to_in_progress_only() -> None:
    assert [after for after in State if is_legal(State.SCHEDULED, after)] == [State.IN_PROGRESS]


def test_nothing_goes_back_to_scheduled() -> None:
    assert not any(is_legal(before, State.SCHEDULED) for before in State)


def test_every_state_can_end() -> None:
    def reach(state: State, seen: frozenset[State] = frozenset()) -> set[State]:
        after = {state} | {s for n in TRANSITIONS[state] - seen - {state} for s in reach(n, seen | {state})}
        return set(after)

    for state in State:
        assert reach(state) & FINAL
