"""Where requests part: what is read once is what all of them begin with."""

from eval.tasks.shared_prefix import _shared


def request(context, continuation):
    return (None, context, continuation)


def test_the_common_beginning_ends_where_requests_differ():
    assert _shared([request([1, 2, 3, 4], [5]), request([1, 2, 9, 4], [5])]) == 2


def test_the_last_token_of_the_shortest_context_is_left_out_as_it_predicts():
    assert _shared([request([1, 2, 3], [4]), request([1, 2, 3], [5])]) == 2
    assert _shared([request([1], [4]), request([1, 2, 3], [5])]) == 0
