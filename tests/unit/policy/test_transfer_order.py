import pytest
from hypothesis import given
from hypothesis import strategies as st

from moespac.actors.core import ExpertKey
from moespac.actors.policy.cache_order import IntegrityError
from moespac.actors.policy.transfer_order import TransferQueue

A, B, C, D = ExpertKey(0, 1), ExpertKey(0, 2), ExpertKey(1, 0), ExpertKey(2, 5)


def drain(queue):
    return [transfer.key for transfer in iter(queue.pop, None)]


def test_highest_utility_then_earlier_layer_then_lower_expert():
    queue = TransferQueue(10)
    assert queue.pop() is None
    queue.replace(1, [(D, 3), (C, 1), (B, 1), (A, 1)], 1000)
    assert drain(queue) == [D, A, B, C]


def test_an_expert_named_twice_moves_once_at_its_highest_utility():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 1), (B, 2), (A, 3)], 1000)
    assert drain(queue) == [A, B]


def test_new_plan_replaces_and_old_plan_is_ignored():
    queue = TransferQueue(10)
    queue.replace(5, [(A, 3), (B, 2)], 1000)
    assert queue.replace(6, [(B, 1), (C, 4)], 1000)
    assert not queue.replace(5, [(D, 9)], 1000)
    assert (queue.plan_epoch, drain(queue)) == (6, [C, B])


def test_what_is_in_flight_is_not_started_again():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3)], 1000)
    flying = queue.pop()
    queue.replace(2, [(A, 3), (B, 1)], 1000)
    assert queue.in_flight == (A,)
    assert drain(queue) == [B]
    queue.done(flying)
    assert queue.in_flight == (B,)
    with pytest.raises(ValueError, match="not in flight"):
        queue.done(flying)


def test_blocked_transfer_stands_in_front_of_nobody():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 2), (C, 1)], 1000)
    queue.set_aside(queue.pop())
    assert (queue.pop().key, len(queue)) == (B, 2)
    queue.retry()
    assert drain(queue) == [A, C]


def test_what_the_device_refused_waits_for_other_residents_not_for_time():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 2), (C, 1)], 1000)
    queue.refused(queue.pop())
    assert not queue.worth_a_retry
    queue.retry()
    queue.set_aside(queue.pop())
    assert (queue.worth_a_retry, len(queue), queue.budget_left) == (True, 3, 1000)
    queue.readmit()
    assert drain(queue) == [A, C]
    queue.retry()
    assert drain(queue) == [B]


def test_a_new_plan_forgets_what_was_refused():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 3)], 1000)
    first, second = queue.pop(), queue.pop()
    queue.refused(first)
    queue.replace(2, [(C, 2), (B, 1)], 1000)
    queue.refused(second)
    queue.readmit()
    assert drain(queue) == [C, B]


def test_what_crossed_the_link_in_vain_is_paid_for():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3)], 25)
    queue.set_aside(queue.pop(), moved=True)
    queue.retry()
    queue.set_aside(queue.pop(), moved=True)
    assert (queue.budget_left, queue.worth_a_retry) == (5, False)
    queue.retry()
    assert queue.pop() is None


def test_set_aside_after_a_new_plan_follows_the_new_plan():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 3)], 1000)
    first, second = queue.pop(), queue.pop()
    queue.replace(2, [(A, 1), (C, 2)], 20)
    queue.set_aside(first)
    queue.set_aside(second)
    queue.retry()
    # A waits at its new utility, B is no longer wanted, and neither gave its bytes to a plan that never paid them.
    assert queue.budget_left == 20
    assert drain(queue) == [C, A]


def test_budget_of_bytes_is_per_plan_and_exact():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 2), (C, 1)], 25)
    assert (drain(queue), queue.budget_left, len(queue)) == ([A, B], 5, 1)
    # The same plan again does not renew its budget; a new one does.
    queue.replace(1, [(C, 1)], 25)
    assert drain(queue) == []
    queue.replace(2, [(C, 1)], 25)
    assert drain(queue) == [C]


def test_what_did_not_move_gives_its_bytes_back():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 2)], 10)
    queue.done(queue.pop(), moved=False)
    assert drain(queue) == [B]


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("plan"),
                st.integers(0, 6),
                st.lists(st.tuples(st.builds(ExpertKey, st.integers(0, 2), st.integers(0, 3)), st.integers(1, 5))),
                st.integers(0, 60),
            ),
            st.tuples(st.sampled_from(["pop", "done", "failed", "aside", "retry", "refused", "readmit", "broken"])),
        ),
        max_size=40,
    )
)
def test_never_over_budget_never_twice_never_out_of_order(steps):
    queue = TransferQueue(10)
    epoch, budget, charged = -1, 0, 0
    wishes, line, aside, refused, flying = {}, {}, {}, {}, {}
    for step in steps:
        if step[0] == "plan":
            _, new_epoch, wanted, new_budget = step
            assert queue.replace(new_epoch, wanted, new_budget) == (new_epoch >= epoch)
            if new_epoch >= epoch:
                charged = charged if new_epoch == epoch else 0
                epoch, budget = new_epoch, new_budget
                wishes = dict(sorted(wanted, key=lambda wish: wish[1]))
                line, aside, refused = {key: wishes[key] for key in wishes if key not in flying}, {}, {}
        elif step[0] == "pop":
            transfer = queue.pop()
            if transfer is None:
                assert not line or charged + 10 > budget
            else:
                assert transfer.key == min(line, key=lambda key: (-line[key], key))
                assert transfer.utility == line.pop(transfer.key)
                flying[transfer.key] = transfer
                charged += 10
                assert charged <= budget
        elif step[0] == "retry":
            queue.retry()
            line, aside = line | aside, {}
        elif step[0] == "readmit":
            queue.readmit()
            line, refused = line | refused, {}
        elif flying:
            key, transfer = flying.popitem()
            if step[0] == "aside":
                queue.set_aside(transfer)
                if key in wishes:
                    aside[key] = wishes[key]
            elif step[0] == "refused":
                queue.refused(transfer)
                if key in wishes:
                    refused[key] = wishes[key]
            else:
                if step[0] == "broken":
                    queue.broken_off(transfer, moved=True)
                else:
                    queue.done(transfer, moved=step[0] == "done")
                if step[0] != "done" and transfer.plan_epoch < epoch and key in wishes:
                    line[key] = wishes[key]
            if step[0] not in ("done", "broken") and transfer.plan_epoch == epoch:
                charged -= 10
        assert (queue.budget_left, len(queue)) == (budget - charged, len(line) + len(aside) + len(refused))
        assert set(queue.in_flight) == set(flying)
        queue.check_integrity()


def test_a_transfer_overtaken_by_a_plan_that_wants_it_too_is_made_for_that_plan():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 2)], 1000)
    overtaken, dropped = queue.pop(), queue.pop()
    queue.replace(2, [(C, 2), (A, 1)], 20)
    queue.done(dropped, moved=False)
    queue.done(overtaken, moved=False)
    assert drain(queue) == [C, A], "at the new plan's utility and within its budget; nobody wants B any more"


def test_what_was_broken_off_is_made_again_if_the_plan_that_did_it_wants_it():
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 2)], 20)
    demoted, dropped = queue.pop(), queue.pop()
    queue.replace(2, [(C, 2), (A, 1)], 20)
    queue.broken_off(dropped, moved=True)
    queue.broken_off(demoted, moved=True)
    assert drain(queue) == [C, A]
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 3)], 20)
    queue.broken_off(queue.pop(), moved=False)
    assert (queue.budget_left, drain(queue)) == (20, [B]), "not for the plan that it was begun for"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda queue: queue._heap.append((-1, A)), "more than one place"),
        (lambda queue: queue._set_aside.update({D: 1}), "does not want them"),
        (lambda queue: setattr(queue, "_spent", 0), "counted as spent"),
    ],
)
def test_integrity_check_finds_damage(damage, says):
    queue = TransferQueue(10)
    queue.replace(1, [(A, 3), (B, 2)], 1000)
    queue.pop()
    queue.check_integrity()
    damage(queue)
    with pytest.raises(IntegrityError, match=says):
        queue.check_integrity()
