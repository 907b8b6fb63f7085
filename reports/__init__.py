"""What a run looked like: every figure is ``facts(record)`` (pandas) and ``figure(facts)`` (plotly); one HTML page.

Needs neither torch nor a GPU: a run directory holds open formats, and `reports.record.load_run` reads them.
"""
