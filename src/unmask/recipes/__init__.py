"""Floor 5: a training run as data (`Recipe`), and its execution (`run`)."""
