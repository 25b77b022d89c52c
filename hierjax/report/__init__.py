"""The report: reads the folders of runs and draws."""
