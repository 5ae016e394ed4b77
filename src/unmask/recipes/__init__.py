"""A training run as data (`Recipe`), and its execution (`run`)."""
