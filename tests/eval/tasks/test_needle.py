"""The needle: one number of five digits, for the place that is asked for."""

import re

from eval.tasks import TASKS


def test_the_number_asked_for_is_the_one_stated(setting, asked):
    task = TASKS["needle"](asked("{task: needle, length: 700, samples: 3}"), setting)
    for question in task.questions:
        (place, number) = re.findall(r"The secret number of ([^.]+) is (\d{5})\.", question.prompt)[0]
        assert question.answer == f" {number}"
        assert question.prompt.endswith(f"The secret number of {place} is")
