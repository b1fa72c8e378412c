"""RESULTS.md and the HTML page, from results.json."""
