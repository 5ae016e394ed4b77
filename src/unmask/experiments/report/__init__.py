"""Floor 6: a record of results becomes pictures and one page. Works on plain JSON and never imports torch.

`page.write_report` writes report.html, `figures.duality_figure` the picture of `unmask verify`.
"""
