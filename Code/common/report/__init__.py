"""From runs to tables (``python -m common.report.tables``) and to one page (``python -m common.report``)."""
