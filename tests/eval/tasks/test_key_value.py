"""Pairs of keys and values: every key once, and the one asked for among them."""

from eval.tasks import TASKS


def test_keys_are_different_and_the_value_is_that_of_the_key(setting, asked):
    task = TASKS["key_value"](asked("{task: key_value, length: 700, samples: 3}"), setting)
    for question in task.questions:
        *lines, request = [line for line in question.prompt.splitlines() if line.startswith("key ")]
        pairs = dict(line.removeprefix("key ").split(": ") for line in lines)
        assert len(pairs) == len(lines) > 10
        assert question.answer == f" {pairs[request.removeprefix('key ').rstrip(':')]}"
