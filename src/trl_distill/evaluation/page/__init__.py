"""The report of a run or an evaluation: `report.html`, one file without scripts, and `report.json`."""

PAGE, DATA = "report.html", "report.json"
