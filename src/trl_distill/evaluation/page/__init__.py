"""What a run and an evaluation leave to be read: `report.html`, one file without scripts, and `report.json`."""

PAGE, DATA = "report.html", "report.json"
