"""Figures and self-contained pages made from report.json and table.json, without torch.

`page.write_report` writes report.html, `table_page.write_table` the page of a table of the paper.
"""

from unmask.extras import needs_extra

with needs_extra("demo"):
    import jinja2  # noqa: F401  every module below needs one of them
    import matplotlib  # noqa: F401
