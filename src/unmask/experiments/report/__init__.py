"""Figures and self-contained pages made from report.json and table.json. It never imports torch.

`page.write_report` writes report.html, `paper.write_table` the page of a table of the paper.
"""
