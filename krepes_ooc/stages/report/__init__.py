"""Stage report: the sealed stores as one page and one JSON file -> report.html, report.json."""
