"""Whole experiments: tables of runs, migration to another taxonomy."""
