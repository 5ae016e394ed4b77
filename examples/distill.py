"""Masked Consistency Distillation on a few rows for a few steps. The loop is your own code."""

from dataclasses import replace

import unmask

teacher = unmask.load("unmask:teacher")
ids = unmask.sample(teacher, n=16, length=128, steps=16).tokens  # or rows of your own text, [n, L]

recipe = unmask.recipe("demo-mcd")
recipe = replace(recipe, steps=8, batch_size=8, objective=replace(recipe.objective, round_steps=2))
student = teacher
for update in unmask.distill(teacher, ids, recipe):
    # The loss rises from round to round. The time between student and teacher doubles each round,
    # so the teacher sees more tokens that are hidden from the student.
    number = update.metrics["round"]
    print(f"step {update.step}: {update.loss:.3f} nats a token, round {number:.0f}")
    student = update.student or student  # the last update of each round carries the student

print(unmask.sample(student, n=1, length=64, steps=4).texts)
